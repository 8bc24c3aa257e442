"""Proven lower bounds on what any schedule of a placement can reach: arithmetic, no search.

In the proofs below, r is a rank, *first* and *last* the lowest and the highest stage that a microbatch's path has on r,
c the memory limit, and a *backward* is a full one (B) or the two halves (I, then W), whichever is shorter.
The *reach* of an op is the length of the chain of ops and transfers that must come before it: all forwards up to its
stage for an F; all forwards and the input gradients down from the last stage for an I or B.

**Head.** Nothing runs on r before the least reach of an F on it.

**Turn.** The first op on r is an F. Until r's first backward starts, r runs forwards only; the microbatch of that
backward has passed r's first stage since, so that the time up to there is at least
``turn = reach(I of last) - reach(F of first)``. Where the forwards that r can run meanwhile are shorter, r idles. They
are all in memory, so that under a limit their activations sum up to c at most.

**Return.** Let j be the microbatch of the last F on r to start; it belongs to j's last stage on r. Until j's backward
of its first stage on r starts, ``back = reach(I of first) - reach(F of last)`` must pass. Forwards are over, so r has
nothing to do in this time but backwards and halves of them whose activations are held when it begins: they sum up to c
at most, that of j's first stage and its F counted in. Where this work is shorter than ``back``, r idles. If c is too
small for the forwards of all microbatches, the last F starts after the first backward, so that the turn and the return
are disjoint, and their idle times add up. (Work that is in neither comes on top.)

**Round trips.** Each activation is held for ``reach(I) + I - reach(F)`` at least. The sum over all of (size x time)
fits into c x the span of r.

**Tail.** After the last I or B on r to start, of some microbatch's first stage there, the backwards of the stages
before it still have to run, one after another.

**Chain.** One microbatch alone runs forward, back and ends with its weight gradient at stage 0.

**The vocabulary.** Where it is split over the ranks, r runs S and T for all microbatches, too. S comes before the
microbatch's backward on any rank, so it counts in the time up to r's last I or B; T, and the embedding's gradient, need
not. They may run in the turn and in the return, and the meetings may take no time.

The turn and the return of rank 0 together give the column of zb-1p in arXiv 2401.10241, table 5, to four decimals: no
schedule under that limit, p x act, is better on those rows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipert.costs import tolerated
from pipert.ops import OpKind
from pipert.solve.problem import Job, Problem

if TYPE_CHECKING:
    from pipert.costs import Costs
    from pipert.ir import Program
    from pipert.plan import Plan

_KIND = re.compile(r"(?<=[0-9])[FIWBRS](?=[0-9])|OVERLAP_F_B")
_BACKWARD = {OpKind.BACKWARD.text, OpKind.INPUT_GRAD.text}


@dataclass(frozen=True, slots=True)
class Bound:
    """What no schedule of a placement goes below, in the unit of the costs.

    Attributes:
        makespan: from the start of the first op to the end of the last.
        longest_rank_span: the same on one rank, of the rank where it is longest.
    """

    makespan: float
    longest_rank_span: float


def lower_bound(placed: Program | Plan, costs: Costs, memory_limit: float | None = None) -> Bound:
    """Bound what any order of the ops of a program or plan can reach, with its stages and microbatches where they are.

    Full backwards may be split and halves be joined; what is recomputed stays so. This module's text has the proofs.

    Args:
        placed: its order is not looked at.
        costs: of its ops and transfers.
        memory_limit: the most activation that a rank may hold; it counts only where nothing is recomputed.

    Raises:
        ConfigError: the costs are for other sizes, or no schedule keeps the memory limit.
    """
    kinds = _kinds(placed)
    if OpKind.OVERLAP_F_B.text in kinds and costs.overlap < 1:  # as if all ops were as much shorter as paired ones are
        speed = costs.rank_speed or (1.0,) * placed.num_ranks
        costs = dataclasses.replace(costs, rank_speed=tuple(each / costs.overlap for each in speed))
    vocabulary = _vocabulary(placed, costs) if OpKind.SCORE.text in kinds else None
    if not kinds & _BACKWARD:
        return _forward_only(Problem.of(placed, costs), vocabulary)
    if OpKind.RECOMPUTE.text in kinds:
        return bound_of(Problem.of(placed, costs), _recomputed(placed), vocabulary)
    return bound_of(Problem.of(placed, costs, memory_limit), vocabulary=vocabulary)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the passes over the vocabulary take of each rank: S, and what may come after the rank's last I."""

    scores: tuple[float, ...]
    gradients: tuple[float, ...]


def bound_of(
    problem: Problem, recomputed: Iterable[tuple[int, int]] = (), vocabulary: Vocabulary | None = None
) -> Bound:
    """Bound what any schedule of ``problem`` can reach.

    Args:
        problem: placement, costs and memory limit.
        recomputed: the (stage, microbatch) whose forward runs twice; if there are any, there must be no memory limit.
        vocabulary: the passes over it, if there are any.
    """
    again, late = [0.0] * problem.num_ranks, [0.0] * problem.num_ranks
    if vocabulary is not None:
        again, late = list(vocabulary.scores), list(vocabulary.gradients)
    job_of = {microbatch: job for job in problem.jobs for microbatch in job.microbatches}
    for stage, microbatch in recomputed:
        again[job_of[microbatch].path[stage]] += job_of[microbatch].times[stage].R
    chains = [_Chain(job) for job in problem.jobs]
    ranks = [_Rank(problem, chains, rank, again[rank], late[rank]) for rank in range(problem.num_ranks)]
    makespan = max(max(chain.end for chain in chains), max(rank.end for rank in ranks))
    return Bound(makespan, max(rank.span for rank in ranks))


class _Chain:
    """What one microbatch of a job does, per stage: how long it takes, and the reach of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.forward = [times.F for times in job.times]
        self.backward = [times.backward for times in job.times]
        self.input_part = [times.input_part for times in job.times]
        self.forward_reach: list[float] = []
        self.backward_reach: list[float] = []
        reach = 0.0
        for forward, delay in zip(self.forward, job.delays, strict=True):
            self.forward_reach.append(reach + delay)
            reach += delay + forward
        for part, delay in zip(reversed(self.input_part), reversed(job.grad_delays), strict=True):
            self.backward_reach.insert(0, reach)
            reach += part + delay
        self.end = self.backward_reach[0] + self.backward[0]

    def total(self, part: Sequence[float], stages: Iterable[int]) -> float:
        """Add up a part over some stages, for all microbatches of the job."""
        return len(self.job.microbatches) * sum(part[stage] for stage in stages)


class _Rank:
    """What one rank needs at least: ``span`` from its first to its last op, ``end`` from the start of the step.

    Beside forwards and backwards it has ``again`` to do before its last I, and ``late`` at any time.
    """

    def __init__(self, problem: Problem, chains: Sequence[_Chain], rank: int, again: float, late: float) -> None:
        self.limit = tolerated(problem.memory_limit)
        self.sizes = [stage.act for stage in problem.memory]
        self.sizes_after_input_grad = [stage.act_w for stage in problem.memory]
        self.visits = [(chain, stages) for chain in chains if (stages := chain.job.stages_on(rank))]
        self.again, self.late = again, late
        entries = [(chain, stages[0]) for chain, stages in self.visits]
        head = min(chain.forward_reach[first] for chain, first in entries)
        tail = min(chain.end - chain.backward_reach[first] - chain.input_part[first] for chain, first in entries)
        alone = max(
            chain.backward_reach[first] + chain.backward[first] - chain.forward_reach[first] for chain, first in entries
        )
        weight_grad = min(chain.backward[first] - chain.input_part[first] for chain, first in entries)
        to_last_input_grad = max(self._turn_and_return(whole=False), self._round_trips())
        self.span = max(alone, self._turn_and_return(whole=True), to_last_input_grad + weight_grad)
        self.end = head + max(self.span, to_last_input_grad + tail)

    def _turn_and_return(self, whole: bool) -> float:
        """Bound the time from the first F to the end of the last backward, or, if not whole, to that of the last I."""
        turn = min(chain.backward_reach[stages[-1]] - chain.forward_reach[stages[0]] for chain, stages in self.visits)
        back = min(chain.backward_reach[stages[0]] - chain.forward_reach[stages[-1]] for chain, stages in self.visits)
        again = self.again + (self.late if whole else 0.0)
        forwards = again + sum(chain.total(chain.forward, stages) for chain, stages in self.visits)
        backwards = sum(
            chain.total(chain.backward if whole else chain.input_part, stages) for chain, stages in self.visits
        )
        work = forwards + backwards
        items = [(self.sizes[stage], chain.forward[stage]) for chain, stages in self.visits for stage in stages]
        in_turn = min(forwards, again + _most_work(self.limit, items))
        in_return = min(work, again + self._most_in_return(whole))
        bounds = [turn + work - in_turn, back + work - in_return]
        if sum(chain.total(self.sizes, stages) for chain, stages in self.visits) > self.limit:
            bounds.append(turn + back + max(0.0, work - in_turn - in_return))
        return max(work, *bounds)

    def _most_in_return(self, whole: bool) -> float:
        room = self.limit - min(self.sizes[stages[0]] for _, stages in self.visits)
        last_forward = max(chain.forward[stages[-1]] for chain, stages in self.visits)
        inputs, backwards, weights = [], [], []
        for chain, stages in self.visits:
            for stage in stages:
                inputs.append((self.sizes[stage], chain.input_part[stage]))
                backwards.append((self.sizes[stage], chain.backward[stage]))
                weight_grad = chain.job.times[stage].W
                weights.append((self.sizes_after_input_grad[stage], weight_grad))
        if not whole:
            return last_forward + _most_work(room, inputs)
        all_weights = sum(
            len(chain.job.microbatches) * chain.job.times[stage].W for chain, stages in self.visits for stage in stages
        )
        held = min(_most_work(room, backwards + weights), _most_work(room, inputs) + all_weights)
        return last_forward + held

    def _round_trips(self) -> float:
        """Bound the time from the first F to the end of the last I by what is held how long meanwhile."""
        if math.isinf(self.limit):
            return 0.0
        lives = [
            (
                self.sizes[stage],
                chain.backward_reach[stage] + chain.input_part[stage] - chain.forward_reach[stage],
                chain,
            )
            for chain, stages in self.visits
            for stage in stages
        ]
        area = sum(len(chain.job.microbatches) * size * life for size, life, chain in lives)
        sizes = {size for size, _, _ in lives}
        if len(sizes) > 1 or sizes == {0.0}:
            return area / self.limit if area else 0.0
        size = sizes.pop()
        at_once = math.floor(self.limit / size)
        turns = math.ceil(sum(len(chain.job.microbatches) for _, _, chain in lives) / at_once)
        return max(area / (at_once * size), turns * min(life for _, life, _ in lives))


def _most_work(room: float, items: Sequence[tuple[float, float]]) -> float:
    """Find how much work fits into ``room``, of items (size, work) that may each be taken any number of times.

    Exact for one or two different sizes; for more, items may be cut, which can only add work.
    """
    best: dict[float, float] = {}
    for size, work in items:
        if work > 0:
            best[size] = max(work, best.get(size, 0.0))
    if not best:
        return 0.0
    if math.isinf(room) or 0.0 in best:
        return math.inf
    if len(best) > 2:
        return room * max(work / size for size, work in best.items())
    (large, large_work), (small, small_work) = max(best.items()), min(best.items())
    return max(
        count * large_work + math.floor((room - count * large) / small) * small_work
        for count in range(math.floor(room / large) + 1)
    )


def _forward_only(problem: Problem, vocabulary: Vocabulary | None) -> Bound:
    """Bound forwards alone: a rank's head, its work, and the forwards that follow its last one."""
    chains = [_Chain(job) for job in problem.jobs]
    span = end = 0.0
    for rank in range(problem.num_ranks):
        visits = [(chain, stages) for chain in chains if (stages := chain.job.stages_on(rank))]
        work = sum(chain.total(chain.forward, stages) for chain, stages in visits)
        scores = vocabulary.scores[rank] if vocabulary is not None else 0.0
        head = min(chain.forward_reach[stages[0]] for chain, stages in visits)
        tail = min(
            chain.backward_reach[-1] - chain.forward_reach[stages[-1]] - chain.forward[stages[-1]]
            for chain, stages in visits
        )
        span, end = max(span, work + scores), max(end, head + work + max(tail, scores))
    end = max(end, *(chain.backward_reach[-1] for chain in chains))
    return Bound(end, span)


def _vocabulary(placed: Program | Plan, costs: Costs) -> Vocabulary:
    # What looks up the embedding may run before all else, and is left out.
    vocab, ranks = costs.known_vocab, range(placed.num_ranks)
    times = [placed.num_microbatches / costs.speed_of(rank) for rank in ranks]
    gradient = vocab.T + vocab.embed_w
    return Vocabulary(tuple(time * vocab.S for time in times), tuple(time * gradient for time in times))


def _kinds(placed: Program | Plan) -> set[str]:
    from pipert.ir import Program

    if isinstance(placed, Program):
        return {each.kind.text for ops in placed.ranks for op in ops for each in (op, *op.unpacked)}
    return {kind for text in placed.op_text for kind in _KIND.findall(text)}


def _recomputed(placed: Program | Plan) -> list[tuple[int, int]]:
    from pipert.ir import Program

    ops = (op for ops in placed.ranks for op in ops) if isinstance(placed, Program) else iter(placed.ops)
    return [(part.stage, part.microbatch) for op in ops for part in op.unpacked if part.kind is OpKind.RECOMPUTE]
