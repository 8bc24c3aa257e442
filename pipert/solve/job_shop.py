"""A scheduling problem in whole numbers, as a job shop: what CP-SAT is given, apart from CP-SAT.

The quantum of time is the greatest common divisor of all times, if the step then has at most 10 million quanta; the
integers are exact. Else a step has a million, and times are rounded down: the integer problem is then easier than the
real one, so that what is proven about it holds for the real one; by rounding alone it is lower by at most a quantum for
each op of the longest chain. Likewise for memory.

All backwards are split. Where a full one is shorter than its halves, the halves are so much shorter that together they
take no longer, which again makes the problem easier only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pipert.costs import tolerated
from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.passes import split_backward
from pipert.solve.problem import Job, Problem

KINDS = (OpKind.FORWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD)
_FORWARD, _INPUT_GRAD, _WEIGHT_GRAD = KINDS
_MOST_EXACT_QUANTA = 10_000_000
_QUANTA = 1_000_000
_TOLERANCE = 1e-9

Starts = dict[Op, int]
"""When each op starts, in quanta of time."""

Transfer = tuple[Op, Op, int]
"""(the op that makes it, the op that reads it, the delay between them)."""

TransferClass = tuple[int, OpKind, int]
"""(job, kind and stage of the reader): transfers that are sent and read in ascending order of their microbatches."""


class JobShop:
    """The ops of a problem, with their durations, what they wait for, and what they hold.

    Attributes:
        problem: in the unit of the costs.
        quantum: of time, in that unit.
        longest_step: no step that idles only where it must is longer, in quanta.
        durations: per op, in quanta.
        inputs: per op, what it waits for, each with the delay from its end to the start of the op.
        memory: per stage, in quanta of memory, what is held from F to I, from F to W, and from F to the end.
        memory_limit: in quanta of memory; None: no limit.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.num_stages = len(problem.memory)
        self.paths = {microbatch: job.path for job in problem.jobs for microbatch in job.microbatches}
        longest_step = _longest_step(problem)
        self.quantum = _quantum(_times(problem), longest_step)
        self.longest_step = math.ceil(longest_step / self.quantum)
        self.durations: dict[Op, int] = {}
        self.inputs: dict[Op, list[tuple[Op, int]]] = {}
        for job in problem.jobs:
            self._add(job)
        self.memory, self.memory_limit = _whole_memory(problem)

    def _add(self, job: Job) -> None:
        last = self.num_stages - 1
        for microbatch in job.microbatches:
            for stage in range(self.num_stages):
                forward, input_grad, weight_grad = (Op(kind, stage, microbatch) for kind in KINDS)
                times = job.times[stage]
                self.durations[forward] = self.whole(times.F)
                self.durations[input_grad] = self.whole(times.input_part)
                self.durations[weight_grad] = self.whole(times.weight_part)
                before = Op(_FORWARD, max(0, stage - 1), microbatch), self.whole(job.delays[stage])
                self.inputs[forward] = [before] if stage > 0 else []
                if stage < last:
                    delay = self.whole(job.grad_delays[stage + 1])
                    self.inputs[input_grad] = [(Op(_INPUT_GRAD, stage + 1, microbatch), delay)]
                else:
                    self.inputs[input_grad] = [(forward, 0)]
                self.inputs[weight_grad] = [(input_grad, 0)]

    def whole(self, time: float) -> int:
        """Round a time down to quanta."""
        return math.floor(time / self.quantum + _TOLERANCE)

    def rank_of(self, op: Op) -> int:
        """Return the rank that an op runs on."""
        return self.paths[op.microbatch][op.stage]

    def transfers(self) -> dict[tuple[int, int], dict[TransferClass, list[Transfer]]]:
        """List what is sent over each directed edge: for each class, in ascending order."""
        edges: dict[tuple[int, int], dict[TransferClass, list[Transfer]]] = {}
        for number, job in enumerate(self.problem.jobs):
            for reader in (
                Op(kind, stage, mb) for mb in job.microbatches for kind in KINDS for stage in range(self.num_stages)
            ):
                for maker, delay in self.inputs[reader]:
                    edge = self.rank_of(maker), self.rank_of(reader)
                    if edge[0] != edge[1]:
                        classes = edges.setdefault(edge, {})
                        classes.setdefault((number, reader.kind, reader.stage), []).append((maker, reader, delay))
        return edges

    def order(self, starts: Starts) -> tuple[tuple[Op, ...], ...]:
        """List each rank's ops as they start; those that take no time after what they wait for."""

        def key(op: Op) -> tuple[int, int, int, int]:
            depth = op.stage if op.kind is _FORWARD else -op.stage
            return starts[op], starts[op] + self.durations[op], KINDS.index(op.kind), depth

        ranks: list[list[Op]] = [[] for _ in range(self.problem.num_ranks)]
        for op in sorted(starts, key=key):
            ranks[self.rank_of(op)].append(op)
        return tuple(map(tuple, ranks))

    def starts(self, program: Program) -> Starts:
        """Run the order of a valid program, every op as early as it can; like microbatches are put in ascending order.

        Full backwards are split and overlapped pairs taken apart.
        """
        ranks = [
            [part for op in ops for part in op.unpacked if part.kind in KINDS] for ops in split_backward(program).ranks
        ]
        starts: Starts = {}
        position, now = [0] * len(ranks), [0] * len(ranks)
        while len(starts) < len(self.durations):
            for rank, ops in enumerate(ranks):
                while position[rank] < len(ops) and all(
                    other in starts for other, _ in self.inputs[ops[position[rank]]]
                ):
                    op = ops[position[rank]]
                    arrivals = [starts[other] + self.durations[other] + delay for other, delay in self.inputs[op]]
                    starts[op] = max([now[rank], *arrivals])
                    now[rank] = starts[op] + self.durations[op]
                    position[rank] += 1
        return self._ascending(starts)

    def _ascending(self, starts: Starts) -> Starts:
        ascending: Starts = {}
        for job in self.problem.jobs:
            for stage in range(self.num_stages):
                for kind in KINDS:
                    ops = [Op(kind, stage, microbatch) for microbatch in job.microbatches]
                    ascending.update(zip(ops, sorted(starts[op] for op in ops), strict=True))
        return ascending


def _times(problem: Problem) -> set[float]:
    times: set[float] = set()
    for job in problem.jobs:
        times.update(time for stage in job.times for time in (stage.F, stage.input_part, stage.weight_part))
        times.update(job.delays + job.grad_delays)
    return times


def _longest_step(problem: Problem) -> float:
    """Bound a step in which nothing runs beside anything else."""
    return sum(
        len(job.microbatches)
        * (sum(stage.F + stage.backward for stage in job.times) + sum(job.delays + job.grad_delays))
        for job in problem.jobs
    )


def _quantum(values: Iterable[float], total: float) -> float:
    """Find the greatest unit of which all values are multiples, or else, of too many, a millionth of ``total``."""
    values = list(values)
    for parts in sorted(float(small * 10**zeros) for small in range(1, 65) for zeros in range(7)):
        multiples = [value * parts for value in values]
        if all(abs(multiple - round(multiple)) < 1e-6 for multiple in multiples):
            divisor = math.gcd(*map(round, multiples)) or 1
            if total * parts <= divisor * _MOST_EXACT_QUANTA:
                return divisor / parts
    return total / _QUANTA if total > 0 else 1.0


def _whole_memory(problem: Problem) -> tuple[list[tuple[int, int, int]], int | None]:
    parts = [(stage.act - stage.act_w, stage.act_w - stage.act_kept, stage.act_kept) for stage in problem.memory]
    limit = problem.memory_limit
    if limit is None:
        return [(0, 0, 0) for _ in parts], None
    quantum = _quantum([size for stage in parts for size in stage], limit)

    def whole(size: float) -> int:
        return math.floor(size / quantum + _TOLERANCE)

    return [(whole(first), whole(second), whole(third)) for first, second, third in parts], whole(tolerated(limit))
