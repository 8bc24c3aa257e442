"""How all ranks meet within a step: the collectives of a split vocabulary.

A meeting is begun by every rank, in one order, and does not keep its thread; whoever needs its result waits. In one
process the parts are handed over; between processes the ranks have a communicator of their own.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from pipert.errors import LaneTimeout, PeerLost
from pipert.ir import Op
from pipert.ops import OpKind
from pipert.rendezvous import Group, gather

_SLICE = timedelta(milliseconds=50)


class Pattern(enum.Enum):
    """What a meeting does."""

    BROADCAST = "broadcast"
    GATHER = "gather"
    SUM = "sum"


PATTERN = {
    OpKind.VEMBED: Pattern.SUM,
    OpKind.VBCAST: Pattern.BROADCAST,
    OpKind.VSTATS: Pattern.GATHER,
    OpKind.VGRAD: Pattern.SUM,
    OpKind.VEMBED_GRAD: Pattern.BROADCAST,
}
"""What each kind of meeting does. Sums and broadcasts have a root, the rank that sums or sends."""


class Meetings(Protocol):
    """The meetings of one step."""

    def begin(self, kind: OpKind, microbatch: int, rank: int, root: int, tensor: Tensor) -> None:
        """Bring this rank's part: what is sent, gathered or summed, or an empty tensor to receive into.

        The caller leaves it alone until it has asked for a result.
        """
        ...

    def result(self, kind: OpKind, microbatch: int, rank: int) -> Tensor:
        """Return what was sent, all parts ``[ranks, ...]``, or, on the root, the sum. Once on each rank."""
        ...

    def finish(self) -> None:
        """End a step: wait for what nobody asked for."""
        ...

    def clear(self) -> None:
        """Forget everything, after a step that failed."""
        ...


class LocalMeetings:
    """All ranks live in this process."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._begun: dict[tuple[OpKind, int], _Begun] = {}

    def begin(self, kind: OpKind, microbatch: int, rank: int, root: int, tensor: Tensor) -> None:
        """See :class:`Meetings`."""
        num_askers = 1 if PATTERN[kind] is Pattern.SUM else self._num_ranks
        begun = self._begun.setdefault((kind, microbatch), _Begun({}, root, num_askers))
        begun.parts[rank] = tensor

    def result(self, kind: OpKind, microbatch: int, rank: int) -> Tensor:
        """See :class:`Meetings`."""
        begun = self._begun[kind, microbatch]
        begun.num_askers -= 1
        if begun.num_askers == 0:
            del self._begun[kind, microbatch]
        if PATTERN[kind] is Pattern.BROADCAST:
            return begun.parts[begun.root]
        parts = torch.stack([begun.parts[each] for each in range(self._num_ranks)])
        return parts if PATTERN[kind] is Pattern.GATHER else parts.sum(0)

    def finish(self) -> None:
        """See :class:`Meetings`."""
        self._begun.clear()

    def clear(self) -> None:
        """See :class:`Meetings`."""
        self._begun.clear()


@dataclass(slots=True)
class _Begun:
    parts: dict[int, Tensor]
    root: int
    num_askers: int


class GroupMeetings:
    """Each rank is a process; the ranks have a communicator of their own, made here. Collective.

    Args:
        group: the ranks' process group.
        session: a name that the ranks agreed on, and nobody else has.
        device: where the tensors lie. gloo moves those of the host, NCCL those of CUDA devices; where ranks share a
            device, of which NCCL does not let them have a part each, they go through the host, too.
        timeout_ms: the longest wait.
        check: raises what has failed meanwhile, here or on another rank.
    """

    def __init__(
        self, group: Group, session: str, device: torch.device, timeout_ms: int, check: Callable[[], None]
    ) -> None:
        rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self._rank, self._num_ranks = rank, num_ranks
        self._timeout_ms = timeout_ms
        self._check = check
        self._on_host = device.type == "cpu" or _share_device(group, device)
        timeout = timedelta(milliseconds=timeout_ms)
        store = distributed_c10d.PrefixStore(f"pipert/{session}/meetings", distributed_c10d._get_default_store())
        # The stubs of torch lack the methods of a single backend.
        self._communicator: Any
        if self._on_host:
            self._communicator = dist.ProcessGroupGloo(store, rank, num_ranks, timeout)
        else:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._communicator = dist.ProcessGroupNCCL(store, rank, num_ranks, options)
        self._connect(torch.device("cpu") if self._on_host else device)
        self._begun: dict[tuple[OpKind, int], tuple[dist.Work, Tensor, torch.device]] = {}

    def begin(self, kind: OpKind, microbatch: int, rank: int, root: int, tensor: Tensor) -> None:
        """See :class:`Meetings`."""
        pattern = PATTERN[kind]
        result = tensor.cpu().contiguous() if self._on_host else tensor.contiguous()
        if pattern is Pattern.BROADCAST:
            broadcast = dist.BroadcastOptions()
            broadcast.rootRank = root
            work = self._communicator.broadcast([result], broadcast)
        elif pattern is Pattern.SUM:
            total = dist.ReduceOptions()
            total.rootRank = root  # it sums by default
            work = self._communicator.reduce([result], total)
        else:
            part, result = result, result.new_empty((self._num_ranks, *result.shape))
            work = self._communicator.allgather([list(result.unbind())], [part])
        self._begun[kind, microbatch] = work, result, tensor.device

    def result(self, kind: OpKind, microbatch: int, rank: int) -> Tensor:
        """See :class:`Meetings`.

        Raises:
            PipertError: another rank failed, or did not come in time.
        """
        work, result, device = self._begun.pop((kind, microbatch))
        self._wait(work, str(Op(kind, -1, microbatch)), rank)
        return result.to(device)

    def finish(self) -> None:
        """See :class:`Meetings`; raises what :meth:`result` does."""
        for kind, microbatch in list(self._begun):
            self.result(kind, microbatch, self._rank)

    def clear(self) -> None:
        """See :class:`Meetings`."""
        self._begun.clear()

    def _connect(self, device: torch.device) -> None:
        """Send real bytes, so that no step makes the connections."""
        self._communicator.allgather(
            [[torch.empty(1, device=device) for _ in range(self._num_ranks)]], [torch.zeros(1, device=device)]
        ).wait()

    def _wait(self, work: dist.Work, op: str, rank: int) -> None:
        """Wait, on the host in slices, so that a failure of another rank, or Ctrl-C, ends it."""
        deadline = time.monotonic() + self._timeout_ms / 1e3
        while self._on_host and not _is_over(work):
            self._check()
            if time.monotonic() > deadline:
                raise LaneTimeout(
                    f"rank {rank} waited {self._timeout_ms} ms for the other ranks to come to {op}", rank=rank, op=op
                )
        try:
            work.wait()  # of a device, its current stream does
        except RuntimeError as error:
            self._check()
            raise PeerLost(f"rank {rank}: {op}: another rank has left: {error}", rank=rank, op=op) from None


def _share_device(group: Group, device: torch.device) -> bool:
    """Whether two ranks are on one CUDA device. Collective."""
    devices = gather(group, str(torch.cuda.get_device_properties(device).uuid))
    return len(set(devices)) < len(devices)


def _is_over(work: dist.Work) -> bool:
    """Wait for one slice of time."""
    with suppress(RuntimeError):  # that it is not done, or why it will never be
        work.wait(_SLICE)
    return work.is_completed()
