"""The schedule that is solved for: the best order of a placement, with a proof.

Constraint programming for job shops, on the ops of Qi et al., "Zero Bubble Pipeline Parallelism", section 3,
arXiv 2401.10241.
"""

from __future__ import annotations

import dataclasses

from pipert.ir import Program
from pipert.schedules.request import Request
from pipert.schedules.searched import auto

_TIME_LIMIT_S = 60.0
_SEARCH_SHARE = 0.2  # of a time limit, for the schedule to start from


def optimal(request: Request) -> Program:
    """Make the fastest schedule of the placement that `auto` takes, and prove how near to the best it is.

    A minute's work, unless the effort has a time limit.
    """
    from pipert.solve.optimal import cp_model
    from pipert.solve.optimal import optimal as solve

    cp_model()  # before any work, as it may be missing
    effort = request.effort
    limit = _TIME_LIMIT_S if effort.time_limit_s is None else effort.time_limit_s
    search = dataclasses.replace(
        effort, time_limit_s=None if effort.time_limit_s is None else limit * _SEARCH_SHARE, progress=None
    )
    hint = auto(dataclasses.replace(request, effort=search))
    solution = solve(
        hint,
        request.costs,
        request.memory_limit,
        time_limit_s=limit if effort.time_limit_s is None else limit * (1 - _SEARCH_SHARE),
        seed=effort.seed,
        progress=effort.progress,
        should_stop=effort.should_stop,
    )
    if effort.proven is not None:
        effort.proven(solution.bound)
    return solution.program
