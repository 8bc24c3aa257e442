"""Run a plan on a virtual clock.

>>> plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=4, num_microbatches=8))
>>> print(pipert.simulate(plan, pipert.Costs.per_rank(F=1.0, I=1.0, W=1.0)))
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pipert import _core
from pipert.costs import Costs, StageCosts
from pipert.trace.report import Report, measure
from pipert.trace.trace import Trace

if TYPE_CHECKING:
    from pipert.plan import Plan

__all__ = ["Costs", "Report", "StageCosts", "simulate"]


def simulate(plan: Plan, costs: Costs) -> Report:
    """Run one step of ``plan`` on a virtual clock.

    The rules are those of the executor: each lane runs its ops in order, an op starts as soon as its lane and its
    dependencies allow, a transfer takes place when its sender and its receiver are both ready. ``report.trace`` holds
    the start and the end of every op, in the unit of the costs.

    Raises:
        ConfigError: the costs are per stage, and the plan has another number of stages.
    """
    stages = costs.for_plan(plan)
    start, end = _core.simulate(
        plan.native,
        F=[stage.F for stage in stages],
        I=[stage.I for stage in stages],
        W=[stage.W for stage in stages],
        B=[stage.full_backward for stage in stages],
        R=[stage.recompute for stage in stages],
        latency=costs.p2p,
        occupancy=costs.occupancy,
        host_cores=costs.host_cores or 0.0,
    )
    return measure(Trace(plan, array("d", start), array("d", end)), costs)
