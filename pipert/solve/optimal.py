"""The schedule ``optimal``: CP-SAT (OR-Tools) orders the ops of a placement, and proves how far from the best it is.

The model is a job shop: an interval per op, one at a time on each rank, inputs before outputs with the transfer's delay
between them, and a rank's activations as a resource. Backwards are split. Microbatches that are alike run in ascending
order on every stage, for each kind of op: in any schedule, the i-th start of a kind on a stage may be given to the i-th
of them, and by then the i-th of what it waits for has ended, so nothing is lost. Where several streams of transfers
share an edge, what the solver finds can overrun the receive window; it is then run again with that window in the model.
`pipert.solve.job_shop` says how times become integers, and why the bound survives that; the figure of an answer is that
of the real costs, simulated.

The method, constraint programming for job shops, is common; arXiv 2401.10241, section 3, orders the same ops under a
memory limit by an integer program.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

from pipert.activation import peak_activation
from pipert.costs import Costs, tolerated
from pipert.errors import ConfigError, PlanError
from pipert.ir import Op, Program
from pipert.lowering import compile
from pipert.passes import split_backward
from pipert.sim import simulate
from pipert.solve.bound import lower_bound
from pipert.solve.job_shop import KINDS, JobShop, Starts, Transfer
from pipert.solve.problem import Problem

_FORWARD, _INPUT_GRAD, _WEIGHT_GRAD = KINDS
_TOLERANCE = 1e-9
_GLANCE_S = 0.1
_SHARE_WITHOUT_WINDOWS = 0.25  # of the time, for the first of two searches
RECV_DEPTH = 2
"""The receive window that the schedules are made for; the default of :func:`pipert.compile`."""

Goal = Literal["longest_rank_span", "makespan"]
"""The figure of `pipert.sim.Report` that is minimised."""

Progress = Callable[[float, float], None]
"""Called with the best figure so far, and the share of the time limit that is over."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found, and what it proved.

    Attributes:
        program: the best schedule.
        figure: its longest rank span or makespan, simulated, in the unit of the costs.
        bound: what no schedule of this placement goes below.
    """

    program: Program
    figure: float
    bound: float

    @property
    def gap(self) -> float:
        """What the bound leaves open, as a part of the figure; 0: nothing better exists."""
        return max(0.0, 1 - self.bound / self.figure) if self.figure > 0 else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether the gap is no more than the rounding of floats."""
        return self.gap <= _TOLERANCE

    def __str__(self) -> str:
        if self.is_optimal:
            return f"optimal: {self.figure:.6g}, and no schedule of this placement is shorter"
        return f"best found: {self.figure:.6g}; proven bound {self.bound:.6g}, gap {self.gap:.2%}"


def optimal(
    hint: Program,
    costs: Costs,
    memory_limit: float | None = None,
    *,
    goal: Goal = "longest_rank_span",
    time_limit_s: float = 60.0,
    seed: int = 0,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Solution:
    """Find the best order of a program's ops under a memory limit.

    The same arguments give the same answer, unless time or the caller ends the search.

    Args:
        hint: a valid program; it gives the placement and where to start from. The answer is no slower, unless the hint
            exceeds the limit.
        costs: of its ops; full backwards are split, and overlapped pairs taken apart.
        memory_limit: the most activation that a rank may hold, in the unit of ``costs``' ``act``; None: no limit.
        goal: which figure to minimise.
        time_limit_s: for the search, in seconds.
        seed: of the search.
        progress: called now and then.
        should_stop: asked now and then; once it says so, the best so far is the answer.

    Raises:
        ConfigError: OR-Tools is missing, no schedule keeps the memory limit, or none was found in time.
        PlanError: the hint would deadlock.
    """
    compile(hint, recv_depth=RECV_DEPTH)
    problem = Problem.of(hint, costs, memory_limit)
    pairs = any(op.parts for ops in hint.ranks for op in ops)
    shortest = min(1.0, costs.overlap) if pairs else 1.0  # what the ops of a pair take of their time
    bound = float(getattr(lower_bound(hint, costs, memory_limit), goal))
    best: Solution | None = None

    def consider(program: Program) -> None:
        nonlocal best
        figure = _figure(program, costs, memory_limit, goal)
        if figure is not None and (best is None or figure < best.figure):
            best = Solution(program, figure, bound)

    consider(hint)
    consider(split_backward(hint))
    began = time.monotonic()

    def watch(found: float | None) -> bool:
        known = [figure for figure in (found, best.figure if best else None) if figure is not None]
        if progress is not None and known:
            progress(min(known), min(1.0, (time.monotonic() - began) / time_limit_s))
        return should_stop is None or not should_stop()

    if best is not None and best.figure <= bound * (1 + _TOLERANCE):
        return dataclasses.replace(best, bound=min(bound, best.figure))
    shop = JobShop(problem)
    shared = any(len(classes) > 1 for classes in shop.transfers().values())
    for windows, share in ((False, _SHARE_WITHOUT_WINDOWS), (True, 1.0)) if shared else ((False, 1.0),):
        left = began + time_limit_s - time.monotonic()
        if left <= 0 or not watch(None) or (best is not None and best.figure <= bound * (1 + _TOLERANCE)):
            break
        search = _Search(shop, goal, bound, windows=windows, starts_at_once=costs.host_cores is None)
        search.hint(shop.starts(best.program if best else hint))
        starts, proven = search.run(left * share, seed, watch)
        bound = max(bound, proven * shortest)
        if starts is not None:
            consider(dataclasses.replace(hint, ranks=shop.order(starts)))
    if best is None:
        raise ConfigError(f"no schedule was found within {time_limit_s:g} s; give it more time, or a hint that fits")
    return dataclasses.replace(best, bound=min(bound, best.figure))


def _figure(program: Program, costs: Costs, memory_limit: float | None, goal: Goal) -> float | None:
    """Simulate a schedule; None if it does not keep the limit, or cannot be compiled."""
    if max(peak_activation(program, costs)) > tolerated(memory_limit):
        return None
    try:
        report = simulate(compile(program, recv_depth=RECV_DEPTH), costs)
    except PlanError:
        return None
    return float(getattr(report, goal))


def cp_model() -> Any:
    """Import OR-Tools' CP-SAT.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ConfigError("the schedule `optimal` needs OR-Tools: pip install 'pipert[solve]'") from error
    return cp_model


class _Search:
    """The CP-SAT model of a job shop."""

    def __init__(
        self, shop: JobShop, goal: Goal, bound: float, *, windows: bool = False, starts_at_once: bool = True
    ) -> None:
        self.shop = shop
        self.cp = cp_model()
        self.model = self.cp.CpModel()
        self.start: dict[Op, Any] = {}
        self.end: dict[Op, Any] = {}
        self.goal = goal
        self.bound = bound
        self.horizon = math.ceil(shop.longest_step)
        self._ops()
        if starts_at_once:
            self._fix_first_forwards()
        if windows:
            for classes in shop.transfers().values():
                if len(classes) > 1:
                    self._edge(list(classes.values()))
        if shop.memory_limit is not None:
            self._memory(shop.memory_limit)
        self._objective()

    def _ops(self) -> None:
        model, shop = self.model, self.shop
        intervals: list[list[Any]] = [[] for _ in range(shop.problem.num_ranks)]
        for op, duration in shop.durations.items():
            self.start[op] = model.new_int_var(0, self.horizon - duration, str(op))
            self.end[op] = self.start[op] + duration
            intervals[shop.rank_of(op)].append(model.new_fixed_size_interval_var(self.start[op], duration, str(op)))
        for rank_intervals in intervals:
            model.add_no_overlap(rank_intervals)
        for op, inputs in shop.inputs.items():
            for other, delay in inputs:
                model.add(self.start[op] >= self.end[other] + delay)
        for job in shop.problem.jobs:
            for earlier, later in zip(job.microbatches, job.microbatches[1:], strict=False):
                for stage in range(shop.num_stages):
                    for kind in KINDS:
                        model.add(self.start[Op(kind, stage, later)] >= self.end[Op(kind, stage, earlier)])

    def _fix_first_forwards(self) -> None:
        """Start the first microbatch at once on each rank's first stage, as nothing can run before it."""
        if len(self.shop.problem.jobs) > 1:
            return
        (job,) = self.shop.problem.jobs
        now = 0
        for stage, rank in enumerate(job.path):
            if rank in job.path[:stage]:
                break
            op = Op(_FORWARD, stage, job.microbatches[0])
            now += sum(delay for _, delay in self.shop.inputs[op])
            self.model.add(self.start[op] == now)
            now += self.shop.durations[op]

    def _edge(self, classes: Sequence[Sequence[Transfer]]) -> None:
        """Keep the receive window of an edge: its transfers go in the order of their makers, few of them unread."""
        model, start, end = self.model, self.start, self.end
        waiting = []
        sent: list[list[Any]] = []
        for transfers in classes:
            sent.append([])
            for maker, reader, delay in transfers:
                begin = model.new_int_var(0, self.horizon, "")
                model.add(begin >= end[maker])
                model.add(begin + delay <= start[reader])
                sent[-1].append(begin)
                waiting.append(model.new_interval_var(begin, model.new_int_var(0, self.horizon, ""), end[reader], ""))
            for earlier, later in itertools.pairwise(sent[-1]):
                model.add(earlier <= later)
        model.add_cumulative(waiting, [1] * len(waiting), RECV_DEPTH)
        makers = [[maker for maker, _, _ in transfers] for transfers in classes]
        streams = [list(zip(*stream, strict=True)) for stream in zip(makers, sent, strict=True)]
        for stream, other_stream in itertools.combinations(streams, 2):
            for (maker, begin), (other, other_begin) in itertools.product(stream, other_stream):
                before = model.new_bool_var("")
                model.add(end[maker] <= start[other]).only_enforce_if(before)
                model.add(end[other] <= start[maker]).only_enforce_if(~before)
                model.add(begin <= other_begin).only_enforce_if(before)
                model.add(other_begin <= begin).only_enforce_if(~before)

    def _memory(self, limit: int) -> None:
        for rank in range(self.shop.problem.num_ranks):
            self._memory_of(rank, limit)

    def _memory_of(self, rank: int, limit: int) -> None:
        model, end = self.model, self.end
        lives, sizes = [], []
        for job in self.shop.problem.jobs:
            for stage in job.stages_on(rank):
                for microbatch in job.microbatches:
                    begin = self.start[Op(_FORWARD, stage, microbatch)]
                    ends = (
                        end[Op(_INPUT_GRAD, stage, microbatch)],
                        end[Op(_WEIGHT_GRAD, stage, microbatch)],
                        self.horizon,
                    )
                    for size, life_end in zip(self.shop.memory[stage], ends, strict=True):
                        if size > 0:
                            length = model.new_int_var(0, self.horizon, "")
                            lives.append(model.new_interval_var(begin, length, life_end, ""))
                            sizes.append(size)
        model.add_cumulative(lives, sizes, limit)
        self._queue(rank, limit)

    def _queue(self, rank: int, limit: int) -> None:
        """State what the limit means for each stage alone, as precedences; this helps where microbatches are alike."""
        if len(self.shop.problem.jobs) > 1:
            return
        (job,) = self.shop.problem.jobs
        for stage in job.stages_on(rank):
            size = sum(self.shop.memory[stage])
            if size == 0:
                continue
            for earlier, later in zip(job.microbatches, job.microbatches[limit // size :], strict=False):
                self.model.add(self.start[Op(_FORWARD, stage, later)] >= self.end[Op(_INPUT_GRAD, stage, earlier)])

    def _objective(self) -> None:
        model, shop = self.model, self.shop
        self.objective = model.new_int_var(shop.whole(self.bound), self.horizon, "figure")
        for rank in range(shop.problem.num_ranks):
            visits = [(job, stages) for job in shop.problem.jobs if (stages := job.stages_on(rank))]
            firsts = [self.start[Op(_FORWARD, stages[0], job.microbatches[0])] for job, stages in visits]
            for job, stages in visits:
                for stage in stages:
                    last = self.end[Op(_WEIGHT_GRAD, stage, job.microbatches[-1])]
                    for first in firsts if self.goal == "longest_rank_span" else [0]:
                        model.add(self.objective >= last - first)
        model.minimize(self.objective)

    def hint(self, starts: Starts) -> None:
        """Let the search begin with a schedule."""
        for op, start in starts.items():
            self.model.add_hint(self.start[op], start)

    def run(self, time_limit_s: float, seed: int, watch: Callable[[float | None], bool]) -> tuple[Starts | None, float]:
        """Return the starts of the best schedule, if one was found, and the proven bound in the unit of the costs.

        Args:
            time_limit_s: for CP-SAT.
            seed: of its search.
            watch: called now and then with the best figure so far, if there is one; it says whether to go on.
        """
        solver = self.cp.CpSolver()
        solver.parameters.max_time_in_seconds = time_limit_s
        solver.parameters.num_workers = 1  # deterministic; here also faster than several that share two cores
        solver.parameters.random_seed = seed
        solver.parameters.catch_sigint_signal = False
        best = self.cp.CpSolverSolutionCallback()
        found: list[float] = []
        best.on_solution_callback = lambda: found.append(best.objective_value * self.shop.quantum)
        with ThreadPoolExecutor(1) as pool:
            solving = pool.submit(solver.solve, self.model, best)
            while not wait([solving], timeout=_GLANCE_S).done:
                if not watch(min(found, default=None)):
                    solver.stop_search()
            status = solving.result()
        bound = float(solver.best_objective_bound * self.shop.quantum)
        if status == self.cp.UNKNOWN:
            return None, bound
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            raise AssertionError(f"every job shop has a schedule, but CP-SAT says {solver.status_name(status)}")
        return {op: solver.value(start) for op, start in self.start.items()}, bound
