"""Lowering: a program becomes a plan with transfers, lanes, dependencies and slots.

The steps are files here: ``edges`` (which edge a transfer takes), ``work`` (what every op reads and makes), ``order``
(one global order of all ops), ``slots`` (the memory of every receive) and ``rows`` (the columns of the plan).

Words in these files: a *key* is ``stage * num_microbatches + microbatch``; a *transfer* is the key of the stage that
receives, plus ``num_keys`` if it carries a gradient; then come the norms' transfers, by the rank that receives, and
the totals'; an *item* is an op of the program, numbered rank after rank; the
*order* is a list of items and, for a SEND with its RECV, of ``~transfer``; the items of a *meeting*, one of each rank,
stand side by side in it.
"""

from __future__ import annotations

from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.lowering.edges import Edges
from pipert.lowering.order import Replay
from pipert.lowering.rows import Rows
from pipert.lowering.slots import Slots, windows
from pipert.lowering.work import Work
from pipert.passes import validate
from pipert.plan import Plan

__all__ = ["compile"]


def compile(program: Program, *, recv_depth: int = 2) -> Plan:
    """Lower ``program`` to a verified plan.

    Args:
        program: the compute ops of every rank, and its data-parallel collectives.
        recv_depth: how many receives of one directed edge may be posted before they are used; at least 1.

    Raises:
        ConfigError: ``recv_depth`` is less than 1.
        PlanError: the program is incomplete, or would deadlock with rendezvous sends; the message shows the wait cycle.
    """
    if recv_depth < 1:
        raise ConfigError(f"recv_depth must be at least 1, not {recv_depth}")
    validate(program)
    edges = Edges(program)
    work = Work(program, edges)
    freed_by = windows(work, recv_depth)
    order = Replay(work, edges, freed_by).run()
    slots = Slots(work, edges, order)
    return Rows(work, edges, order, freed_by, slots).plan(program, recv_depth)
