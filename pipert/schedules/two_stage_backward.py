"""2BP on GPipe and 1F1B: the backward in two stages, the second of them whenever a rank would wait, and at the end.

Rae, Lee and Richings, "2BP: 2-Stage Backpropagation", section 3, arXiv 2405.18047. What they save in bubble they pay
for in memory: an activation may be held to the end of the step.
"""

from __future__ import annotations

from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.passes import split_backward
from pipert.schedules import placement
from pipert.schedules.fill import fill_weights
from pipert.schedules.one_f_one_b import one_f_one_b
from pipert.schedules.request import Request, rank_by_rank


def gpipe_2bp(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``: all forwards, all input gradients, all weight gradients."""
    kinds = (OpKind.FORWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD)
    return [Op(kind, rank, microbatch) for kind in kinds for microbatch in range(num_microbatches)]


def one_f_one_b_2bp(request: Request) -> Program:
    """Make 1F1B's order of F and I, with weight gradients in the gaps that, by the costs, fit them."""
    program = split_backward(rank_by_rank(one_f_one_b, placement.loop)(request))
    return fill_weights(program, request.costs, keep_peak=False)
