"""Choose partition, placement and schedule together.

Every placement of the table of schedules (loops, waves, Vs, bidirectional ones) is tried, each with its own partition:
first the one in which the busiest rank has least to do, then, by moving boundaries, the one whose simulated step is
shortest with the placement's best schedule. The best few placements then get a searched schedule (`auto`), and the
boundaries move again under it. Where ranks or links differ, ranks also trade places.

That the three must be chosen together, because each is best only for some choice of the others, is the point of AdaPtis
(arXiv 2509.23722), for models of uneven layers, and of AMP (arXiv 2210.07297), for uneven machines too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipert.costs import Costs, tolerated
from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.lowering import compile
from pipert.ops import OpKind
from pipert.passes import vocab_parallel as vocab_parallel_pass
from pipert.plan import Plan
from pipert.schedules import SCHEDULES, build
from pipert.sim import simulate
from pipert.solve.auto import auto
from pipert.solve.bound import lower_bound
from pipert.tune.machine import Machine
from pipert.tune.partition import Cut, bottleneck_cut, improve, slices
from pipert.tune.profile import Layer
from pipert.tune.vocabulary import split_vocabulary

MOST_CHUNKS = 8
NUM_SEARCHED = 3
"""How many placements get a searched schedule."""
NUM_ROUNDS = 2
_COMPUTE = {OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD}

Progress = Callable[[float, float], None]
"""Called with the best step time so far, in ms, and the share of the work that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model cut, placed and scheduled.

    Attributes:
        program: the schedule; its name is that of the table.
        cut: how many layers each stage has.
        costs: of its stages, in ms.
        step_time: the simulated time of a step, from the first op of any rank to the last, in ms.
        bound: what no schedule of this cut and placement goes below.
    """

    program: Program
    cut: Cut
    costs: Costs
    step_time: float
    bound: float

    def plan(self) -> Plan:
        """Lower the program."""
        return compile(self.program)


def tune(
    layers: Sequence[Layer],
    machine: Machine,
    num_microbatches: int,
    *,
    replicas: bool = True,
    vocab_parallel: int | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tuned:
    """Find the partition, the placement and the schedule with the shortest step.

    The same arguments give the same answer, unless time or the caller ends the search.

    Args:
        layers: of the model, in order.
        machine: what it runs on.
        num_microbatches: m.
        replicas: whether a stage may stand on several ranks (bidirectional schedules), each with its parameters. It may
            not where the vocabulary is split.
        vocab_parallel: the algorithm by which the first and the last layer, the input embedding and the output layer,
            are split over all ranks; None: they are not.
        seed: of the searched schedules.
        time_limit_s: about when to end; None: when all has been tried.
        progress: called now and then.
        should_stop: asked now and then; once it says so, the best so far is the answer.

    Raises:
        ConfigError: there are fewer layers than ranks, or no schedule keeps the memory limit.
    """
    vocab = None
    if vocab_parallel is not None:
        layers, vocab = split_vocabulary(layers, machine.num_ranks, vocab_parallel)
    if len(layers) < machine.num_ranks:
        raise ConfigError(
            f"the profile has {len(layers)} layers, fewer than the {machine.num_ranks} stages that as many ranks need"
        )
    placements = [
        programs
        for programs in _placements(machine.num_ranks, num_microbatches, len(layers))
        if (replicas and vocab is None) or len(programs[0].paths) == 1
    ]
    search = _Search(layers, machine, placements, seed, time_limit_s, progress, should_stop)
    search.run()
    tuned = search.result()
    if vocab_parallel is None:
        return tuned
    return _with_vocabulary(tuned, vocab_parallel, dataclasses.replace(tuned.costs, vocab=vocab), machine.memory_limit)


def _with_vocabulary(tuned: Tuned, algorithm: int, costs: Costs, memory_limit: float | None) -> Tuned:
    """Add the passes over the vocabulary, of which every rank has as many."""
    program = vocab_parallel_pass(tuned.program, algorithm, costs, memory_limit)
    step_time = simulate(compile(program), costs).makespan
    return Tuned(program, tuned.cut, costs, step_time, lower_bound(program, costs, memory_limit).makespan)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A cut under a schedule, with its simulated step; infinite where it does not keep the memory limit."""

    program: Program
    cut: Cut
    step_time: float


class _Search:
    def __init__(
        self,
        layers: Sequence[Layer],
        machine: Machine,
        placements: Sequence[Sequence[Program]],
        seed: int,
        time_limit_s: float | None,
        progress: Progress | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.layers = layers
        self.machine = machine
        self.placements = placements
        self.seed = seed
        self.deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        self.progress = progress
        self.should_stop = should_stop
        self.best: _Candidate | None = None
        self.plans: dict[int, tuple[Program, Plan]] = {}
        self.done = 0
        self.total = 1

    def run(self) -> None:
        """Try everything, the promising first."""
        self.total = len(self.placements) + NUM_SEARCHED + NUM_ROUNDS
        tried: list[_Candidate] = []
        for programs in self.placements:
            if self._stop() and self.best is not None:
                return
            tried.append(self._try(programs))
            self._step()
        tried.sort(key=self._promise)
        searched = []
        for candidate in tried[:NUM_SEARCHED]:
            searched.append(self._search_schedule(candidate))
            self._step()
        candidate = min(searched, key=lambda candidate: candidate.step_time)
        for _ in range(NUM_ROUNDS):
            candidate = self._search_schedule(candidate)
            self._step()

    def result(self) -> Tuned:
        """Return the best.

        Raises:
            ConfigError: nothing keeps the memory limit.
        """
        if self.best is None or math.isinf(self.best.step_time):
            raise ConfigError(
                f"no partition keeps the memory limit of {self.machine.memory_limit:g}: one microbatch alone "
                f"takes more of some rank; the least limit found is {self._least_memory():g}"
            )
        program, cut = self.best.program, self.best.cut
        costs = self.machine.costs(self.layers, cut)
        bound = lower_bound(program, costs, self.machine.memory_limit).makespan
        return Tuned(program, cut, costs, self.best.step_time, bound)

    def _stop(self) -> bool:
        return time.monotonic() > self.deadline or (self.should_stop is not None and self.should_stop())

    def _step(self) -> None:
        self.done += 1
        self._report()

    def _report(self) -> None:
        if self.progress is not None and self.best is not None:
            self.progress(self.best.step_time, self.done / self.total)

    def _try(self, programs: Sequence[Program]) -> _Candidate:
        """Cut the model for a placement, with the best of the schedules that it has in the table."""
        cut = self._balanced(programs[0])
        best = min((self._judge(program, cut) for program in programs), key=self._promise)
        best = self._move_boundaries(best)
        return best if self.machine.is_even else self._swap_ranks(best)

    def _search_schedule(self, start: _Candidate) -> _Candidate:
        """Search for a schedule of a candidate's placement and cut, then move the boundaries under it."""
        if self._stop() or self._excess(start.program, start.cut) > 0:
            return start
        share, done = 1 / self.total, self.done / self.total

        def progress(_: float, part: float) -> None:
            if self.progress is not None and self.best is not None:
                self.progress(self.best.step_time, done + share * part)

        left = self.deadline - time.monotonic()
        program = auto(
            start.program.paths,
            start.program.path_of,
            self.machine.costs(self.layers, start.cut),
            self.machine.memory_limit,
            start=start.program,
            goal="makespan",
            rounds=1,
            seed=self.seed,
            time_limit_s=None if math.isinf(left) else left / max(1, self.total - self.done),
            progress=progress,
            should_stop=self._stop,
        )
        found = self._judge(dataclasses.replace(program, name="auto"), start.cut)
        return self._move_boundaries(found if found.step_time < start.step_time else start)

    def _judge(self, program: Program, cut: Cut) -> _Candidate:
        """Simulate a schedule on a cut, and remember the best."""
        known, plan = self.plans.get(id(program), (None, None))
        if plan is None or known is not program:
            plan = compile(program)
            self.plans[id(program)] = program, plan
        report = simulate(plan, self.machine.costs(self.layers, cut))
        fits = max(report.peak_activation) <= tolerated(self.machine.memory_limit)
        candidate = _Candidate(program, cut, report.makespan if fits else math.inf)
        if self.best is None or candidate.step_time < self.best.step_time:
            self.best = candidate
            self._report()
        return candidate

    def _promise(self, candidate: _Candidate) -> tuple[bool, float]:
        """Order candidates; of those that do not keep the limit a searched schedule may still."""
        if not math.isinf(candidate.step_time):
            return False, candidate.step_time
        try:
            costs = self.machine.costs(self.layers, candidate.cut)
            return True, lower_bound(candidate.program, costs, self.machine.memory_limit).makespan
        except ConfigError:
            return True, math.inf

    def _move_boundaries(self, candidate: _Candidate) -> _Candidate:
        """Cut elsewhere while that makes the simulated step shorter."""
        if math.isinf(candidate.step_time):
            return candidate
        cut = improve(candidate.cut, lambda cut: self._judge(candidate.program, cut).step_time, self._stop)
        return self._judge(candidate.program, cut)

    def _swap_ranks(self, candidate: _Candidate) -> _Candidate:
        """Let two ranks trade places while that makes the simulated step shorter."""
        improved = True
        while improved and not self._stop():
            improved = False
            for pair in itertools.combinations(range(self.machine.num_ranks), 2):
                if self._stop():
                    break
                program = _swapped(candidate.program, *pair)
                other = self._move_boundaries(self._judge(program, self._balanced(program)))
                if other.step_time < candidate.step_time:
                    candidate, improved = other, True
        return candidate

    def _balanced(self, program: Program) -> Cut:
        """Cut so that no rank exceeds the memory limit, and then the busiest has as little to do as can be."""
        times = [layer.time for layer in self.layers]
        cut = bottleneck_cut(times, [self.machine.speed(rank) for rank in program.paths[0]])
        return improve(cut, lambda cut: self._loads(program, cut))

    def _loads(self, program: Program, cut: Cut) -> tuple[float, float, float]:
        parts = [self.layers[part] for part in slices(cut)]
        times = [sum(layer.time for layer in part) for part in parts]
        busy = [0.0] * self.machine.num_ranks
        for path in program.path_of:
            for stage, rank in enumerate(program.paths[path]):
                busy[rank] += times[stage] / self.machine.speed(rank)
        return self._excess(program, cut), max(busy), sum(time * time for time in busy)

    def _excess(self, program: Program, cut: Cut) -> float:
        """Return by how much one microbatch alone exceeds the memory limit."""
        return max(0.0, self._memory(program, cut) - tolerated(self.machine.memory_limit))

    def _memory(self, program: Program, cut: Cut) -> float:
        """Return the most that one microbatch takes of a rank."""
        sizes = [sum(layer.act for layer in self.layers[part]) for part in slices(cut)]
        return max(
            sum(sizes[stage] for stage, holder in enumerate(path) if holder == rank)
            for path in program.paths
            for rank in range(self.machine.num_ranks)
        )

    def _least_memory(self) -> float:
        def least(program: Program) -> float:
            sizes = [layer.act for layer in self.layers]
            cut = bottleneck_cut(sizes, [1.0] * program.num_stages)
            return self._memory(program, improve(cut, lambda cut: self._memory(program, cut)))

        return min(least(programs[0]) for programs in self.placements)


def _placements(num_ranks: int, num_microbatches: int, num_layers: int) -> Iterator[list[Program]]:
    """Group the schedules of the table by their placement, where it has no more stages than there are layers."""
    groups: dict[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]], list[Program]] = {}
    most_chunks = min(MOST_CHUNKS, num_layers // num_ranks)
    for name, schedule in SCHEDULES.items():
        if schedule.from_costs:
            continue
        for chunks in range(1, most_chunks + 1) if schedule.chunks_vary else [schedule.num_chunks]:
            try:
                program = build(name, num_ranks=num_ranks, num_microbatches=num_microbatches, num_chunks=chunks)
            except ConfigError:  # it has no order of these sizes
                continue
            kinds = {part.kind for ops in program.ranks for op in ops for part in op.unpacked}
            if program.num_stages <= num_layers and kinds <= _COMPUTE:
                groups.setdefault((program.paths, program.path_of), []).append(program)
    yield from groups.values()


def _swapped(program: Program, first: int, second: int) -> Program:
    """Let two ranks trade places."""
    place = {first: second, second: first}
    ranks = list(program.ranks)
    ranks[first], ranks[second] = ranks[second], ranks[first]
    paths = tuple(tuple(place.get(rank, rank) for rank in path) for path in program.paths)
    return dataclasses.replace(program, paths=paths, ranks=tuple(ranks))
