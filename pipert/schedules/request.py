"""What a schedule is made for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.ir import Op, Program


@dataclass(frozen=True, slots=True)
class Effort:
    """How a schedule that is searched for is searched for.

    Attributes:
        seed: the same seed finds the same schedule; another one another, as good.
        time_limit_s: search until so much time is over; None: as long as the schedule's own effort lasts.
        progress: called now and then with the best figure so far and the share of the search that is over, 0 to 1.
        should_stop: asked now and then; once it says so, the best so far is taken.
        proven: called with the longest rank span that no schedule of this placement goes below, where one is proven.

    Raises:
        ConfigError: the time limit is no positive number.
    """

    seed: int = 0
    time_limit_s: float | None = None
    progress: Callable[[float, float], None] | None = None
    should_stop: Callable[[], bool] | None = None
    proven: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        if self.time_limit_s is not None and not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise ConfigError(f"a search needs a positive time limit, not {self.time_limit_s:g} s")


@dataclass(frozen=True, slots=True)
class Request:
    """Sizes, costs and limits; what a schedule's generator is called with.

    Attributes:
        num_ranks: p, at least 1.
        num_microbatches: m, at least 1; it may be smaller than p.
        num_chunks: stages per rank (per path), at least 1.
        costs: what ops cost, for the schedules that are made from costs; by default F = I = W = 1.
        memory_limit: the most activation that a rank may hold, in the unit of ``costs``' ``act``; None: no limit.
        effort: for the schedules that are searched for.
        free_chunks: whether nobody asked for ``num_chunks``, so that a schedule that is searched for may take others.

    Raises:
        ConfigError: a size is below 1.
    """

    num_ranks: int
    num_microbatches: int
    num_chunks: int = 1
    costs: Costs = field(default_factory=Costs.per_rank)
    memory_limit: float | None = None
    effort: Effort = field(default_factory=Effort)
    free_chunks: bool = False

    def __post_init__(self) -> None:
        sizes = {"ranks": self.num_ranks, "microbatches": self.num_microbatches, "chunks": self.num_chunks}
        for what, number in sizes.items():
            if number < 1:
                raise ConfigError(f"a schedule needs at least 1 of its {what}, not {number}")


Make = Callable[[Request], Program]
"""A generator: a request in, a program out (whose name the caller sets)."""

Order = Callable[[int, int, int, int], Sequence[Op]]
"""(rank, num_ranks, num_microbatches, num_chunks) → the rank's ops."""

Placement = Callable[[int, int], tuple[int, ...]]
"""(num_ranks, num_chunks) → the rank of each stage."""


def rank_by_rank(order: Order, place: Placement) -> Make:
    """Make a generator of one that lists a single rank's ops, with each stage on one rank."""

    def make(request: Request) -> Program:
        p, m, v = request.num_ranks, request.num_microbatches, request.num_chunks
        return Program.single_path("", place(p, v), m, [order(rank, p, m, v) for rank in range(p)])

    return make
