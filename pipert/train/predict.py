"""The prediction: the run's plan, simulated with what its ops cost on this machine."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping

from pipert.costs import Costs, StageCosts
from pipert.plan import Plan
from pipert.sim import Report, simulate
from pipert.trace import Trace, measure


def predict(plan: Plan, costs: Mapping[int, StageCosts], num_cores: int | None, one_process: bool) -> Report:
    """Return the predicted step, in ms.

    Args:
        plan: what ran.
        costs: per stage, in ms of CPU time.
        num_cores: how many cores the ranks share; None if they need none, or each has its own.
        one_process: whether one process ran all ranks, which computes one op after another in the plan's order.
    """
    per_stage = Costs.per_stage([costs[stage] for stage in range(plan.num_stages)], host_cores=num_cores)
    return _serial(plan, per_stage) if one_process else simulate(plan, per_stage)


def shared_cores(num_ranks: int) -> int | None:
    """Return how many cores the ranks share; None if each has its own."""
    num_cores = len(os.sched_getaffinity(0))
    return num_cores if num_cores < num_ranks else None


def _serial(plan: Plan, costs: Costs) -> Report:
    stages = costs.for_plan(plan)
    start, end = array("d"), array("d")
    now = 0.0
    for op in plan.ops:
        start.append(now)
        now += sum(stages[part.stage].time_of(part.kind) for part in op.unpacked)
        end.append(now)
    return measure(Trace(plan, start, end), costs)
