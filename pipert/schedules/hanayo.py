"""Hanayo: the model runs down the ranks and up again in waves, and microbatches never wait.

Liu et al., "Hanayo: Harnessing Wave-like Pipeline Parallelism for Enhanced Large Model Training Efficiency", section 3,
arXiv 2308.15762.
"""

from __future__ import annotations

from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.schedules import placement
from pipert.schedules.equal_slots import in_equal_slots
from pipert.schedules.request import Request


def hanayo(request: Request) -> Program:
    """Make the program of v / 2 waves; each is one way down and one way up, so two of a rank's v chunks.

    Raises:
        ConfigError: the number of chunks is odd.
    """
    if request.num_chunks % 2:
        raise ConfigError(f"hanayo has 2 chunks per rank for each wave: an even number, not {request.num_chunks}")
    return in_equal_slots([placement.vee(request.num_ranks, request.num_chunks)], request.num_microbatches)
