"""A plan on streams whose ops compute nothing: its messages are all that moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipert import _core
from pipert.engine.device import CudaDevice
from pipert.errors import TransportError
from pipert.ops import LaneKind
from pipert.plan import Plan

_TIMEOUT_MS = 60_000
Handler = Callable[[int], None]


class BarePlan:
    """The executor of a plan on a CUDA device, with handlers that only post what is sent after them.

    Args:
        plan: what to run.
        device: where.
        transport: ``"local"`` or ``"ipc"``; or ``"nccl"``, if there is one process.
        message: gives what a SEND sends, in device memory that stays; those of other processes, too, to check what
            came.
        rank: of this process; None if it is all of them.
        session: names the processes' common memory; None if there is one process.
    """

    def __init__(
        self,
        plan: Plan,
        device: CudaDevice,
        transport: str,
        message: Callable[[int], Tensor],
        rank: int | None = None,
        session: str | None = None,
    ) -> None:
        self.plan = plan
        self._device = device
        self._message = message
        self._slots: dict[int, Tensor] = {}
        self._num_steps = 0
        ranks = list(range(plan.num_ranks)) if rank is None else [rank]
        if session is None or rank is None:
            self._host = _core.Channels.local(plan.native, True)
        else:
            self._host = _core.Channels.shm(plan.native, rank, session, _TIMEOUT_MS, True)
        channels = _core.DeviceChannels(self._host, transport, device.index, _TIMEOUT_MS)
        self._executor = _core.StreamExecutor(plan.native, channels, ranks, self._allocate, _TIMEOUT_MS, False)
        ours = [row for row, lane in enumerate(plan.op_lane) if plan.lanes[lane].rank in set(ranks)]
        self._computes = [row for row in ours if _kind(plan, row) in (LaneKind.COMPUTE, LaneKind.COLLECTIVE)]
        self._sends: dict[int, list[int]] = {row: [] for row in self._computes}
        for row in ours:
            if _kind(plan, row) is LaneKind.SEND:
                self._sends[self._maker(row)].append(row)
        self._receives = [row for row in ours if _kind(plan, row) is LaneKind.RECV]
        self.num_ops = len(ours)
        self._handlers = [self._handler(self._sends[row]) for row in self._computes]
        self._executor.bind(self._handlers)

    def step(self, stream: int) -> None:
        """Enqueue one step behind what is on ``stream``, which then waits for it."""
        self._num_steps += 1
        self._executor.step(self._num_steps, stream)

    def wait(self) -> None:
        """Return when the device is done with the last step; raise what has failed."""
        self._executor.wait()

    def replay(self, graph: int, stream: int) -> None:
        """Run a step in which every op launches ``graph``; from then on, steps do so without any handler."""

        def launching(handler: Handler) -> Handler:
            def run(microbatch: int) -> None:
                handler(microbatch)
                self._executor.run_as(graph)

            return run

        self._executor.bind([launching(handler) for handler in self._handlers])
        self.step(stream)

    def check(self) -> None:
        """Compare what lies in every receive slot after a step with what was sent there.

        Raises:
            TransportError: something else came.
        """
        last_in_slot = {self.plan.op_slot[row]: row for row in self._receives}
        for slot, receive in last_in_slot.items():
            sent = self._message(receive - 1)  # a RECV stands right behind its SEND
            if not torch.equal(self._slots[slot][: sent.numel()], sent):
                raise TransportError(f"{self.plan.op_text[receive]} received something else than what was sent")

    def close(self) -> None:
        """End the lanes and leave the other process."""
        self._executor.close()
        self._host.close()

    def __enter__(self) -> BarePlan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allocate(self, slot: int, num_bytes: int) -> int:
        self._slots[slot] = self._device.empty(num_bytes)
        return self._slots[slot].data_ptr()

    def _maker(self, send: int) -> int:
        """Return the op that makes what ``send`` sends: the last one that it waits for."""
        first, end = self.plan.dep_offsets[send : send + 2]
        return max(row for row in self.plan.deps[first:end] if row in self._sends)

    def _handler(self, sends: Sequence[int]) -> Handler:
        if not sends:
            return _nothing
        post = self._executor.post
        posts = [(send, [(memory.data_ptr(), memory.numel())]) for send in sends for memory in [self._message(send)]]

        def handle(_: int) -> None:
            for send, segments in posts:
                post(send, segments, b"")

        return handle


def _kind(plan: Plan, row: int) -> LaneKind:
    return plan.lanes[plan.op_lane[row]].kind


def _nothing(_: int) -> None:
    pass
