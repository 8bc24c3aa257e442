"""Messages between two ranks through device memory, by the plans and the executor that steps use.

Two plans: in `ping_pong` every message waits for the one before, to and fro; in `one_way` all can be on their way at
once, one after another on their lane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import pipert
from pipert import _core
from pipert.bench import gpu
from pipert.bench.bare_plan import BarePlan
from pipert.bench.figure import Figure, Unavailable
from pipert.engine.device import CudaDevice
from pipert.errors import TransportError
from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.plan import Plan

PING_PONGS = 8  # in a step
ROUNDS = 21
MOST_MESSAGES = 32  # one way in a step; all fit into the device's queues while it is held
MOST_BYTES = 4 << 30  # of the receive slots
ROTATED_BYTES = 256 << 20  # what is sent lies in so much memory, several times what an L2 cache holds
LATENCY_BYTES = tuple(4 << shift for shift in range(0, 19, 2))
BANDWIDTH_BYTES = tuple(4 << shift for shift in range(18, 27, 2))
BAR_FROM_BYTES = 16_000_000


def ping_pong() -> Plan:
    """Each forward of rank 0 waits for the backward of the microbatch before."""
    orders = [
        [Op(kind, stage, microbatch) for microbatch in range(PING_PONGS) for kind in (OpKind.FORWARD, OpKind.BACKWARD)]
        for stage in range(2)
    ]
    return pipert.compile(Program.single_path("ping-pong", (0, 1), PING_PONGS, orders))


def one_way(num_messages: int) -> Plan:
    """Rank 1 uses the last message first, so it needs all of them, each in a slot of its own."""
    orders = [
        [Op(OpKind.FORWARD, 0, microbatch) for microbatch in range(num_messages)],
        [Op(OpKind.FORWARD, 1, microbatch) for microbatch in reversed(range(num_messages))],
    ]
    program = Program.single_path("one-way", (0, 1), num_messages, orders)
    return pipert.compile(program, recv_depth=num_messages)


@dataclass(frozen=True, slots=True)
class Pair:
    """How the two ranks meet.

    Attributes:
        device: both ranks' device.
        transport: ``"local"``, ``"ipc"`` or ``"nccl"``.
        name: what the figures are called after.
        where: one process or two, for the setting.
        rank: of this process; None if it is both.
        session: a new name for the processes' common memory, at each call.
        meet: returns when the other process has called it, too.
        barred: whether the bars are for this pair.
    """

    device: CudaDevice
    transport: str
    name: str
    where: str
    rank: int | None = None
    session: Callable[[], str | None] = lambda: None
    meet: Callable[[], None] = lambda: None
    barred: bool = True

    @property
    def is_first(self) -> bool:
        """Whether rank 0, which takes the times, is this process's."""
        return self.rank in (None, 0)

    def latency(self, num_bytes: int) -> Figure:
        """Measure one message one way: half of a round trip, the device's time."""
        times = [ns / 2e3 / PING_PONGS for ns in self._rounds(ping_pong(), num_bytes, lambda: 0.0)[0]]
        setting = f"{self.where}; the device's time of {PING_PONGS} round trips in a step"
        return Figure.of(f"{self.name}, one way, {gpu.name_of(num_bytes)}", "µs", times, setting=setting)

    def bandwidth(self, num_bytes: int) -> Figure:
        """Measure messages one way, one behind the other, beside plain copies of as many bytes."""
        num_messages = max(2, min(MOST_MESSAGES, MOST_BYTES // num_bytes))
        plain = _PlainCopies(self.device, num_bytes, num_messages)
        ours, theirs = self._rounds(one_way(num_messages), num_bytes, plain.ns)
        rates = [[num_messages * num_bytes / ns for ns in side] for side in (ours, theirs)]
        return Figure.of(
            f"{self.name}, bandwidth, {gpu.name_of(num_bytes)}",
            "GB/s",
            *rates,
            bar=0.9 if self.barred and num_bytes >= BAR_FROM_BYTES else None,
            relative=True,
            at_least=True,
            setting=f"{self.where}; {num_messages} messages in a step, beside plain copies within the device",
        )

    def _rounds(self, plan: Plan, num_bytes: int, peer_ns: Callable[[], float]) -> tuple[list[float], list[float]]:
        """Return the nanoseconds of a step, and of the peer in turns, per round; of the first rank's process."""
        num_sources = max(2, min(plan.num_microbatches, ROTATED_BYTES // num_bytes))
        sources = [self._source(num_bytes, number) for number in range(2 * num_sources)]

        def message(send: int) -> Tensor:
            op = plan.ops[send]
            return sources[2 * (op.microbatch % num_sources) + (op.kind is OpKind.SEND_B)]

        stream, timer = _core.CudaStream(), _core.CudaTimer()
        ours, theirs = [], []
        with BarePlan(plan, self.device, self.transport, message, self.rank, self.session()) as bare:
            bare.step(stream.handle)
            bare.wait()
            for _ in range(ROUNDS):
                self.meet()
                ours.append(self._step_ns(bare, stream.handle, timer))
                self.meet()
                if self.is_first:
                    theirs.append(peer_ns())
            bare.check()
        return ours, theirs

    def _source(self, num_bytes: int, seed: int) -> Tensor:
        return gpu.random_bytes(self.device, num_bytes, seed)

    def _step_ns(self, bare: BarePlan, stream: int, timer: _core.CudaTimer) -> float:
        """Run a step whose first rank's stream is held until both hosts have enqueued all of it."""
        timer.start([stream], self.is_first)
        try:
            bare.step(stream)
            timer.stop([stream])
            self.meet()
        finally:
            timer.release()
        bare.wait()
        return timer.ns()


class _PlainCopies:
    """As many copies within the device, of as many bytes, on one stream."""

    def __init__(self, device: CudaDevice, num_bytes: int, num_messages: int) -> None:
        num_places = max(2, min(num_messages, ROTATED_BYTES // num_bytes))
        self._span = num_places * num_bytes
        self._from = gpu.random_bytes(device, self._span, 1000)
        self._to = device.empty(self._span)
        self._num_bytes, self._num_messages = num_bytes, num_messages
        self._stream, self._timer = _core.CudaStream(), _core.CudaTimer()

    def ns(self) -> float:
        stream, to, from_ = self._stream.handle, self._to.data_ptr(), self._from.data_ptr()
        self._timer.start([stream], True)
        try:
            _core.cuda_copies(to, from_, self._span, self._num_bytes, 0, self._num_messages, stream)
            self._timer.stop([stream])
        finally:
            self._timer.release()
        return self._timer.ns()


def measure(pair: Pair) -> list[Figure]:
    """Return the pair's latencies and bandwidths, of all sizes."""
    return [
        *(pair.latency(num_bytes) for num_bytes in LATENCY_BYTES),
        *(pair.bandwidth(num_bytes) for num_bytes in BANDWIDTH_BYTES),
    ]


def in_one_process(transport: str) -> list[Figure]:
    """Measure both ranks in this process."""
    return measure(Pair(gpu.device(), transport, transport, "one process"))


def nccl() -> list[Figure]:
    """Measure NCCL from the device to itself, by its kernels.

    Raises:
        Unavailable: there is no NCCL.
    """
    device = gpu.device()
    try:
        _core.nccl_id()
    except TransportError as error:
        raise Unavailable(str(error)) from None
    where = "one process, from the device to itself"
    return measure(Pair(device, "nccl", "nccl", where, barred=False))
