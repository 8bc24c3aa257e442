"""The op table: every kind of op, its text and its lane, said once.

The C++ enum, the plan parser and the trace names are generated from this file at build time
(``csrc/plan/generate_op_kinds.py``), so it imports nothing but the standard library.

The texts are those of PyTorch's schedule CSV: ``2F0`` is stage 2, forward, microbatch 0.
"""

from __future__ import annotations

import enum


class LaneKind(enum.Enum):
    """What a lane does. A lane is an in-order queue of ops on one rank."""

    COMPUTE = "compute"
    SEND = "send"
    RECV = "recv"


class OpKind(enum.Enum):
    """One kind of op: ``OpKind.FORWARD.text == "F"``, ``OpKind.FORWARD.lane is LaneKind.COMPUTE``."""

    FORWARD = ("F", LaneKind.COMPUTE)
    BACKWARD = ("B", LaneKind.COMPUTE)
    INPUT_GRAD = ("I", LaneKind.COMPUTE)
    WEIGHT_GRAD = ("W", LaneKind.COMPUTE)
    RECOMPUTE = ("R", LaneKind.COMPUTE)
    OVERLAP_F_B = ("OVERLAP_F_B", LaneKind.COMPUTE)
    SEND_F = ("SEND_F", LaneKind.SEND)
    RECV_F = ("RECV_F", LaneKind.RECV)
    SEND_B = ("SEND_B", LaneKind.SEND)
    RECV_B = ("RECV_B", LaneKind.RECV)

    @property
    def text(self) -> str:
        """The letters that stand for this kind in an op's text."""
        return self.value[0]

    @property
    def lane(self) -> LaneKind:
        """The kind of lane that runs it."""
        return self.value[1]
