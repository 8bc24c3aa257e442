"""The native core: plans, simulator, executor and channels. `make lint` checks this file against the module."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__version__: str

def built_with_cuda() -> bool: ...
def cuda_device_count() -> int: ...
def built_with_nvtx() -> bool: ...
def nvtx_wanted() -> bool: ...
def nvtx_benchmark(iterations: int) -> dict[str, float]: ...

class Plan:
    """A verified plan; immutable."""

    def __init__(self, json_text: str) -> None: ...
    @property
    def num_ops(self) -> int: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def fingerprint(self) -> int: ...

class Channels:
    """The edges of a plan that this process has an end of."""

    @staticmethod
    def local(plan: Plan) -> Channels: ...
    @staticmethod
    def shm(plan: Plan, rank: int, session: str, timeout_ms: int) -> Channels: ...
    @property
    def rank(self) -> int: ...
    def close(self) -> None: ...

class Executor:
    """A plan and its resources: made once, stepped many times."""

    def __init__(
        self,
        plan: Plan,
        channels: Channels,
        ranks: Sequence[int],
        spin_us: int,
        timeout_ms: int,
        delays_ns: Sequence[tuple[int, int]] = ...,
    ) -> None: ...
    def bind(self, handlers: list[Callable[[int], None]]) -> None: ...
    def step(self, step: int) -> None: ...
    def post(self, send_op: int, segments: list[tuple[int, int]], header: bytes) -> int: ...
    def received(self, recv_op: int) -> tuple[bytes, int, int]: ...
    def slot_memory(self, recv_op: int) -> memoryview: ...
    def trace(self) -> bytes: ...
    def status(self) -> str: ...
    def abort(self, reason: str) -> None: ...
    def close(self) -> None: ...

def channel_benchmark(session: str, rank: int, nbytes: int, iterations: int, spin_us: int) -> list[float]: ...

class ClockCosts:
    """What ops cost, as small tables."""

    def __init__(
        self,
        *,
        times: Mapping[str, Sequence[float]],
        scale: Sequence[float],
        rank_speed: Sequence[float],
        overlap: float,
        latency: float,
        occupancy: float,
        links: Sequence[tuple[int, int, float, float]],
        host_cores: float,
    ) -> None: ...

def simulate(plan: Plan, costs: ClockCosts) -> tuple[bytes, bytes]: ...
def measure(
    plan: Plan,
    start: array[float],
    end: array[float],
    act: Sequence[float],
    act_w: Sequence[float],
    act_kept: Sequence[float],
) -> dict[str, Any]: ...
def explain(
    plan: Plan, start: array[float], end: array[float]
) -> tuple[list[dict[str, float]], list[tuple[int, float]], bytes]: ...
def simulate_noisy(
    plan: Plan, costs: ClockCosts, *, op_cv: float, straggler: float, seed: int, first_step: int, num_steps: int
) -> list[tuple[float, float, float]]: ...

class SearchProblem:
    """The ops of one step with their times, places, transfers and memory, for the search."""

    def __init__(
        self,
        *,
        num_ranks: int,
        num_stages: int,
        num_microbatches: int,
        rank_of_cell: Sequence[int],
        time: Sequence[float],
        latency: Sequence[float],
        occupancy: Sequence[float],
        act: Sequence[float],
        act_w: Sequence[float],
        memory_limit: Sequence[float],
    ) -> None: ...
    @property
    def num_ops(self) -> int: ...
    @property
    def work(self) -> list[float]: ...
    def figures(self, order: Sequence[Sequence[int]]) -> dict[str, Any] | None: ...
    def search(
        self,
        starts: Sequence[Sequence[Sequence[int]]],
        *,
        seed: int,
        rule_trials: int,
        order_trials: int,
        bound: float,
        by_span: bool,
        watch: Callable[[float, float], bool],
    ) -> tuple[list[list[int]], float]: ...
