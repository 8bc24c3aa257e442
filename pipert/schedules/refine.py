"""Schedules whose weight gradients find better places for the costs at hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipert.costs import Costs
from pipert.ir import Program
from pipert.schedules.fill import fill_weights
from pipert.schedules.request import Make, Request

if TYPE_CHECKING:
    from pipert.trace import Report

_OVERRUNS = (0.0, 0.5, 1.0)
_MAX_OPS = 40_000
"""Larger programs are left as they are: judging an order takes as long as lowering it."""


def refined(make: Make) -> Make:
    """Make a generator of one that knows no costs: its program, or a better one by the simulator and the costs.

    The other program differs in the places of its weight gradients only, and holds no more. Neither its makespan nor
    its longest span of a rank is worse, and one of them is better.
    """

    def make_refined(request: Request) -> Program:
        program = make(request)
        return program if sum(map(len, program.ranks)) > _MAX_OPS else _refine(program, request.costs)

    return make_refined


def _refine(program: Program, costs: Costs) -> Program:
    orders = [program]
    for overrun in _OVERRUNS:
        filled = fill_weights(program, costs, overrun=overrun)
        if filled not in orders:
            orders.append(filled)
    if len(orders) == 1:
        return program
    report = _simulate(program, costs)
    if all(map(math.isclose, report.rank_spans, report.compute_times)):
        return program
    figures = [_figures(report), *(_figures(_simulate(order, costs)) for order in orders[1:])]
    no_worse = [number for number, (_, span) in enumerate(figures) if span <= figures[0][1]]
    return orders[min(no_worse, key=figures.__getitem__)]


def _figures(report: Report) -> tuple[float, float]:
    """Return (makespan, longest span of a rank), without the digits in which sums of the same times may differ."""
    return float(f"{report.makespan:.9g}"), float(f"{report.longest_rank_span:.9g}")


def _simulate(program: Program, costs: Costs) -> Report:
    from pipert.lowering import compile
    from pipert.sim import simulate

    return simulate(compile(program), costs)
