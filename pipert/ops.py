"""The op table: every kind of op, its text and its lane, said once.

The C++ enum, the plan parser and the trace names are generated from this file at build time
(``csrc/plan/generate_op_kinds.py``), so it imports nothing but the standard library.

The texts are those of PyTorch's schedule CSV: ``2F0`` is stage 2, forward, microbatch 0; ``2UNSHARD`` is for all of
stage 2.
"""

from __future__ import annotations

import enum


class LaneKind(enum.Enum):
    """What a lane does. A lane is an in-order queue of ops on one rank."""

    COMPUTE = "compute"
    SEND = "send"
    RECV = "recv"
    COLLECTIVE = "collective"


class OpKind(enum.Enum):
    """One kind of op: ``OpKind.FORWARD.text == "F"``, ``OpKind.FORWARD.lane is LaneKind.COMPUTE``.

    Attributes:
        text: the letters that stand for this kind in an op's text.
        lane: the kind of lane that runs it.
        has_microbatch: whether it works on one microbatch; the others are for a stage as a whole.
    """

    text: str
    lane: LaneKind
    has_microbatch: bool

    FORWARD = ("F", LaneKind.COMPUTE, True)
    BACKWARD = ("B", LaneKind.COMPUTE, True)
    INPUT_GRAD = ("I", LaneKind.COMPUTE, True)
    WEIGHT_GRAD = ("W", LaneKind.COMPUTE, True)
    RECOMPUTE = ("R", LaneKind.COMPUTE, True)
    OVERLAP_F_B = ("OVERLAP_F_B", LaneKind.COMPUTE, True)
    SEND_F = ("SEND_F", LaneKind.SEND, True)
    RECV_F = ("RECV_F", LaneKind.RECV, True)
    SEND_B = ("SEND_B", LaneKind.SEND, True)
    RECV_B = ("RECV_B", LaneKind.RECV, True)
    UNSHARD = ("UNSHARD", LaneKind.COLLECTIVE, False)
    RESHARD = ("RESHARD", LaneKind.COLLECTIVE, False)
    REDUCE_GRAD = ("REDUCE_GRAD", LaneKind.COLLECTIVE, False)

    def __init__(self, text: str, lane: LaneKind, has_microbatch: bool) -> None:
        self.text = text
        self.lane = lane
        self.has_microbatch = has_microbatch
