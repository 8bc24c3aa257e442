"""Chimera: two copies of the model, one down the ranks and one up, each filling what is the other's bubble.

Li & Hoefler, "Chimera: Efficiently Training Large-Scale Neural Networks with Bidirectional Pipelines", sections 3.1 and
3.5, arXiv 2107.06925. Units of p microbatches follow each other by direct concatenation; the paper's forward doubling
and backward halving, which change the sizes of microbatches, are left out.
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
