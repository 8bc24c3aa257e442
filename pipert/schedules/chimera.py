"""Chimera: two copies of the model, one down the ranks and one up, each filling what is the other's bubble.

Li & Hoefler, "Chimera: Efficiently Training Large-Scale Neural Networks with Bidirectional Pipelines", section 3.1,
arXiv 2107.06925. For p microbatches the order is the paper's. More of them do not come in units of p, one after the
other, but go on entering as the first ones do: in the same memory, with the paper's bubble for any m. Forward doubling
and backward halving, with which the paper makes up for units, are not needed and left out.
"""

from __future__ import annotations

from pipert.ir import Program
from pipert.schedules import placement
from pipert.schedules.equal_slots import in_equal_slots
from pipert.schedules.request import Request


def chimera(request: Request) -> Program:
    """Make the program: stage s stands on rank s and on rank p - 1 - s."""
    down = placement.vee(request.num_ranks, request.num_chunks)
    return in_equal_slots([down, placement.mirrored(down)], request.num_microbatches)
