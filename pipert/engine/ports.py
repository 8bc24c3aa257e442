"""The two ends of every hand-over: a source gives a stage what it needs, a sink takes what the stage made.

Sources have ``take(microbatch)``, sinks ``give(microbatch, tensors)``. A hand-over between two stages of one rank is
both at once; across ranks it is an :class:`Outbox` here and an :class:`Inbox` there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from pipert.engine.device import Device
from pipert.engine.messages import Layouts, Memory, Packer, Segments, read_header, views
from pipert.stages import Grads


class Mail(Protocol):
    """What the ports use of the native executor."""

    def post(self, send_op: int, segments: Segments, header: bytes) -> int:
        """Announce a message; return how many sends of that lane have completed since the executor was bound."""
        ...

    def received(self, recv_op: int) -> tuple[bytes, int, int]:
        """Return header, address and size of a message that has arrived."""
        ...

    def slot(self, recv_op: int) -> Memory:
        """Return the memory of the slot in which it lies."""
        ...


class Source(Protocol):
    """Where a stage's inputs, or the gradients of its outputs, come from."""

    def take(self, microbatch: int) -> Grads:
        """Return the tensors for ``microbatch``; called once per microbatch."""
        ...

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """Return ``tensors``, with a copy of each that lies in memory which another microbatch will reuse."""
        ...

    def clear(self) -> None:
        """Forget what nobody took, after a step that failed."""
        ...


class Sink(Protocol):
    """Where a stage's outputs, or the gradients of its inputs, go."""

    def give(self, microbatch: int, tensors: Grads) -> None:
        """Hand on the tensors of ``microbatch``."""
        ...


class Handover(Source, Sink, Protocol):
    """Both ends of a hand-over within the process."""


class Kept:
    """Hands over within the process: from stage to stage on one rank, or from the caller to the first stage."""

    def __init__(self, num_microbatches: int) -> None:
        self._waiting: list[Grads] = [()] * num_microbatches

    def give(self, microbatch: int, tensors: Grads) -> None:
        """See :class:`Sink`."""
        self._waiting[microbatch] = tensors

    def take(self, microbatch: int) -> Grads:
        """See :class:`Source`."""
        tensors = self._waiting[microbatch]
        self._waiting[microbatch] = ()
        return tensors

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`Source`."""
        return tensors

    def clear(self) -> None:
        """See :class:`Source`."""
        self._waiting = [()] * len(self._waiting)


class Inbox:
    """What arrives from another rank, as tensors over the memory of the receive slots.

    A slot's views are made once per layout and address and then reused; what a stage gets is a fresh detached tensor
    over the same memory. The plan keeps the slot until the last op of its (stage, microbatch).
    """

    def __init__(self, mail: Mail, recv_ops: Sequence[int], slots: Sequence[int]) -> None:
        """Receive ``recv_ops[microbatch]`` into slot ``slots[microbatch]``."""
        self._mail = mail
        self._recv_ops = recv_ops
        self._slots = slots
        self._views: dict[int, tuple[bytes, int, list[tuple[Tensor | None, bool]]]] = {}
        self._spans = [(0, 0)] * len(recv_ops)

    def take(self, microbatch: int) -> Grads:
        """See :class:`Source`."""
        recv_op = self._recv_ops[microbatch]
        slot = self._slots[microbatch]
        header, address, num_bytes = self._mail.received(recv_op)
        self._spans[microbatch] = (address, address + num_bytes)
        cached = self._views.get(slot)
        if cached is None or cached[1] != address or cached[0] != header:
            layouts = read_header(header)
            cached = (header, address, _flagged(views(self._mail.slot(recv_op), layouts), layouts))
            self._views[slot] = cached
        return tuple(
            [view if view is None else view.detach().requires_grad_(requires_grad) for view, requires_grad in cached[2]]
        )

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`Source`."""
        start, end = self._spans[microbatch]
        return tuple([_copy(x) if x is not None and start <= x.data_ptr() < end else x for x in tensors])

    def clear(self) -> None:
        """See :class:`Source`."""
        self._spans = [(0, 0)] * len(self._spans)


class Outbox:
    """What leaves for another rank."""

    def __init__(self, lane: SendLane, send_ops: Sequence[int], device: Device) -> None:
        """Send ``send_ops[microbatch]``, all on ``lane``, tensors of ``device``."""
        self._lane = lane
        self._send_ops = send_ops
        self._pack = Packer(device).pack

    def give(self, microbatch: int, tensors: Grads) -> None:
        """See :class:`Sink`."""
        segments, header, tensors = self._pack(tensors)
        self._lane.post(self._send_ops[microbatch], segments, header, tensors)


class Sources:
    """A source for each microbatch, where the microbatches of a stage come over several ways."""

    def __init__(self, ways: Sequence[Source]) -> None:
        """Take microbatch ``m`` from ``ways[m]``."""
        self._ways = ways

    def take(self, microbatch: int) -> Grads:
        """See :class:`Source`."""
        return self._ways[microbatch].take(microbatch)

    def owned(self, microbatch: int, tensors: Grads) -> Grads:
        """See :class:`Source`."""
        return self._ways[microbatch].owned(microbatch, tensors)

    def clear(self) -> None:
        """See :class:`Source`."""
        for way in set(self._ways):
            way.clear()


class Sinks:
    """A sink for each microbatch, where the microbatches of a stage leave over several ways."""

    def __init__(self, ways: Sequence[Sink]) -> None:
        """Hand microbatch ``m`` on over ``ways[m]``."""
        self._ways = ways

    def give(self, microbatch: int, tensors: Grads) -> None:
        """See :class:`Sink`."""
        self._ways[microbatch].give(microbatch, tensors)


class SendLane:
    """Keeps what one send lane was given alive until it is sent; a lane sends in the order in which it is given."""

    def __init__(self, post: Callable[[int, Segments, bytes], int]) -> None:
        self._post = post
        self._unsent: deque[Grads] = deque()
        self._num_sent = 0

    def post(self, send_op: int, segments: Segments, header: bytes, tensors: Grads) -> None:
        """Post a message; drop the messages that were sent meanwhile."""
        self._unsent.append(tensors)
        num_sent = self._post(send_op, segments, header)
        for _ in range(num_sent - self._num_sent):
            self._unsent.popleft()
        self._num_sent = num_sent

    def flush(self) -> None:
        """Drop everything: the step has ended, so all of it is sent."""
        self._num_sent += len(self._unsent)
        self._unsent.clear()


def _flagged(tensors: list[Tensor | None], layouts: Layouts) -> list[tuple[Tensor | None, bool]]:
    return [
        (tensor, layout is not None and layout.requires_grad) for tensor, layout in zip(tensors, layouts, strict=True)
    ]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
