"""The op table: every kind of op, its text and its lane, said once.

The C++ enum, the plan parser and the trace names are generated from this file at build time
(``csrc/plan/generate_op_kinds.py``), so it imports nothing but the standard library.

The texts are those of PyTorch's schedule CSV: ``2F0`` is stage 2, forward, microbatch 0; ``2UNSHARD`` is for all of
stage 2. The ops that end a step have a rank in front: ``2OPT`` is the optimizer of rank 2. So have those that work on
a rank's shard of the vocabulary: ``3S0`` is rank 3, microbatch 0; all ranks together run ``VBCAST0``.
"""

from __future__ import annotations

import enum


class LaneKind(enum.Enum):
    """What a lane does. A lane is an in-order queue of ops on one rank."""

    COMPUTE = "compute"
    SEND = "send"
    RECV = "recv"
    COLLECTIVE = "collective"


class Scope(enum.Enum):
    """What one op is about."""

    MICROBATCH = "microbatch"
    """One microbatch of a stage: ``2F0``."""
    STAGE = "stage"
    """A stage as a whole: ``2UNSHARD``."""
    RANK = "rank"
    """A rank as a whole: ``2OPT``."""
    SHARD = "shard"
    """One microbatch on a rank's shard of the vocabulary: ``3S0``."""
    MEETING = "meeting"
    """One microbatch, by all ranks at once: ``VBCAST0``, on each of them."""


class OpKind(enum.Enum):
    """One kind of op: ``OpKind.FORWARD.text == "F"``, ``OpKind.FORWARD.lane is LaneKind.COMPUTE``.

    Attributes:
        text: the letters that stand for this kind in an op's text.
        lane: the kind of lane that runs it.
        scope: what one op is about.
        has_microbatch: whether it works on one microbatch: of a stage, of a shard, or of all ranks.
        has_place: whether it is of one stage or rank, whose number its text begins with.
    """

    text: str
    lane: LaneKind
    scope: Scope
    has_microbatch: bool
    has_place: bool

    FORWARD = ("F", LaneKind.COMPUTE, Scope.MICROBATCH)
    BACKWARD = ("B", LaneKind.COMPUTE, Scope.MICROBATCH)
    INPUT_GRAD = ("I", LaneKind.COMPUTE, Scope.MICROBATCH)
    WEIGHT_GRAD = ("W", LaneKind.COMPUTE, Scope.MICROBATCH)
    RECOMPUTE = ("R", LaneKind.COMPUTE, Scope.MICROBATCH)
    OVERLAP_F_B = ("OVERLAP_F_B", LaneKind.COMPUTE, Scope.MICROBATCH)
    SEND_F = ("SEND_F", LaneKind.SEND, Scope.MICROBATCH)
    RECV_F = ("RECV_F", LaneKind.RECV, Scope.MICROBATCH)
    SEND_B = ("SEND_B", LaneKind.SEND, Scope.MICROBATCH)
    RECV_B = ("RECV_B", LaneKind.RECV, Scope.MICROBATCH)
    UNSHARD = ("UNSHARD", LaneKind.COLLECTIVE, Scope.STAGE)
    RESHARD = ("RESHARD", LaneKind.COLLECTIVE, Scope.STAGE)
    REDUCE_GRAD = ("REDUCE_GRAD", LaneKind.COLLECTIVE, Scope.STAGE)

    EMBED = ("EMBED", LaneKind.COMPUTE, Scope.SHARD)
    EMBED_W = ("EMBED_W", LaneKind.COMPUTE, Scope.SHARD)
    SCORE = ("S", LaneKind.COMPUTE, Scope.SHARD)
    SCORE_W = ("T", LaneKind.COMPUTE, Scope.SHARD)
    VEMBED = ("VEMBED", LaneKind.COLLECTIVE, Scope.MEETING)
    VBCAST = ("VBCAST", LaneKind.COLLECTIVE, Scope.MEETING)
    VSTATS = ("VSTATS", LaneKind.COLLECTIVE, Scope.MEETING)
    VGRAD = ("VGRAD", LaneKind.COLLECTIVE, Scope.MEETING)
    VEMBED_GRAD = ("VEMBED_GRAD", LaneKind.COLLECTIVE, Scope.MEETING)

    NORM = ("NORM", LaneKind.COMPUTE, Scope.RANK)
    OPT = ("OPT", LaneKind.COMPUTE, Scope.RANK)
    VALIDATE = ("VALIDATE", LaneKind.COMPUTE, Scope.RANK)
    ROLLBACK = ("ROLLBACK", LaneKind.COMPUTE, Scope.RANK)
    SEND_NORM = ("SEND_NORM", LaneKind.SEND, Scope.RANK)
    RECV_NORM = ("RECV_NORM", LaneKind.RECV, Scope.RANK)
    SEND_TOTAL = ("SEND_TOTAL", LaneKind.SEND, Scope.RANK)
    RECV_TOTAL = ("RECV_TOTAL", LaneKind.RECV, Scope.RANK)

    def __init__(self, text: str, lane: LaneKind, scope: Scope) -> None:
        self.text = text
        self.lane = lane
        self.scope = scope
        self.has_microbatch = scope in (Scope.MICROBATCH, Scope.SHARD, Scope.MEETING)
        self.has_place = scope is not Scope.MEETING
