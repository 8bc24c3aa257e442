"""Run a plan on a virtual clock.

>>> plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=4, num_microbatches=8))
>>> print(pipert.simulate(plan, pipert.Costs.per_rank(F=1.0, I=1.0, W=1.0)))
"""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipert import _core
from pipert.costs import Costs, Link, StageCosts, VocabCosts
from pipert.ops import OpKind, Scope
from pipert.trace.report import Report, measure
from pipert.trace.trace import Trace

if TYPE_CHECKING:
    from pipert.plan import Plan

__all__ = ["Costs", "Link", "Report", "StageCosts", "VocabCosts", "simulate"]


def simulate(plan: Plan, costs: Costs, *, memory_limit: float | None = None) -> Report:
    """Run one step of ``plan`` on a virtual clock.

    The rules are those of the executor: each lane runs its ops in order, an op starts as soon as its lane and its
    dependencies allow, a transfer takes place when its sender and its receiver are both ready. ``report.trace`` holds
    the start and the end of every op, in the unit of the costs.

    Args:
        plan: what runs.
        costs: of its ops.
        memory_limit: what other orders of the ops must keep that ``report.lower_bound`` is to bound.

    Raises:
        ConfigError: the costs are for other numbers of stages, ranks or microbatches than the plan's, or lack those of
            its passes over the vocabulary.
    """
    start, end = _core.simulate(plan.native, clock_costs(plan, costs))
    report = measure(Trace(plan, array("d", start), array("d", end)), costs)
    return dataclasses.replace(report, costs=costs, memory_limit=memory_limit)


def _times(kind: OpKind, plan: Plan, stages: Sequence[StageCosts], vocab: VocabCosts | None) -> list[float]:
    """Give the time of a kind on each stage; on each rank, of a kind that is for ranks (and 0 beyond the last)."""
    if kind.scope in (Scope.SHARD, Scope.MEETING):
        return [0.0 if vocab is None else vocab.time_of(kind)] * plan.num_stages
    if kind.scope is Scope.RANK:
        of_rank = (sum(stages[stage].time_of(kind) for stage in plan.chunks(rank)) for rank in range(plan.num_ranks))
        return list(itertools.islice(itertools.chain(of_rank, itertools.repeat(0.0)), plan.num_stages))
    return [stage.time_of(kind) for stage in stages]


def clock_costs(plan: Plan, costs: Costs) -> _core.ClockCosts:
    """Give the costs of a plan's ops in the form that the core takes."""
    stages = costs.for_plan(plan)
    vocab = costs.known_vocab if f"{OpKind.VBCAST.text}0" in plan.op_text else None
    scale: list[float] = []
    if any(stage.microbatch_scale for stage in stages):
        for stage in stages:
            scale += map(stage.scale_of, range(plan.num_microbatches))
    return _core.ClockCosts(
        times={kind.text: _times(kind, plan, stages, vocab) for kind in OpKind},
        scale=scale,
        rank_speed=costs.rank_speed,
        overlap=costs.overlap,
        latency=costs.p2p,
        occupancy=costs.occupancy,
        links=[(*edge, *costs.transfer(*edge)) for edge in costs.links],
        host_cores=costs.host_cores or 0.0,
    )
