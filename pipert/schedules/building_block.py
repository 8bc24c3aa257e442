"""V-Half and V-Min: a model folded into a V, in about a half and a third of 1F1B's memory.

Qi et al., "Pipeline Parallelism with Controllable Memory", section 3.1 and appendix F, arXiv 2405.15362. The passes of
one microbatch, laid out in time, are the building block. The schedule repeats it once per period, and a rank holds as
many activations as there are periods between a forward and its weight gradient: the longer the block, the more. Ways
are the paper's; turns are not, where they turn out to save two steps of bubble in the same memory.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pipert.costs import Costs
from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.schedules import placement
from pipert.schedules.fill import fill_weights
from pipert.schedules.request import Request

_KINDS = (OpKind.FORWARD,) * 2 + (OpKind.INPUT_GRAD,) * 2 + (OpKind.WEIGHT_GRAD,) * 2
_PERIOD = len(_KINDS)  # the time in which a rank does all that it has to do for one microbatch, when a pass takes 1


@dataclass(frozen=True, slots=True)
class _Block:
    """When the passes of a microbatch start: from the first rank to the last with F and back, then so with I.

    Passes of different microbatches never collide on a rank, if those of one start at different times modulo the
    period. The weight gradients take the two times that are left, the earliest after their I's.

    Attributes:
        down: time from a rank to the next on the ways to the last rank; 1 is as fast as can be.
        up: the same on the ways back.
        turns: delays of the way up with F, of the way down with I, and of the way up with I.
    """

    down: int
    up: int
    turns: tuple[int, int, int]

    def starts(self, rank: int, num_ranks: int) -> list[int]:
        """List the starts of a rank's passes: F down, F up, I down, I up, W down, W up."""
        below = num_ranks - 1 - rank
        forward_up = self.down * (num_ranks - 1) + 1 + self.turns[0]
        grad_down = forward_up + self.up * (num_ranks - 1) + 1 + self.turns[1]
        grad_up = grad_down + self.down * (num_ranks - 1) + 1 + self.turns[2]
        down, up = self.down * rank, self.up * below
        starts = [down, forward_up + up, grad_down + down, grad_up + up]
        free = set(range(_PERIOD)) - {start % _PERIOD for start in starts}
        pairs = itertools.product(*(range(grad + 1, grad + 1 + _PERIOD) for grad in starts[2:]))
        return starts + list(min((pair for pair in pairs if {time % _PERIOD for time in pair} == free), key=sum))


def v_half(request: Request) -> Program:
    """Make V-Half: down at half speed, up at full speed, so that modulo 3 the offsets between the ways are constant."""
    return _repeat(request, _Block(down=2, up=1, turns=(3, 0, 4) if request.num_ranks % 2 == 0 else (1, 0, 0)))


def v_min(request: Request) -> Program:
    """Make V-Min: all at full speed. Modulo 2 a way down never meets one up; the two ways down do if 3 divides p."""
    return _repeat(request, _Block(down=1, up=1, turns=(2, 0, 2) if request.num_ranks % 3 == 0 else (0, 0, 0)))


def _repeat(request: Request, block: _Block) -> Program:
    """Repeat a block; then, as the paper reorders, let weight gradients fill the start and the end of the step."""
    p, m = request.num_ranks, request.num_microbatches
    ranks = []
    for rank in range(p):
        first, last = rank, 2 * p - 1 - rank  # its stages on the model's way down the V and up again
        passes = zip(block.starts(rank, p), _KINDS, (first, last, last, first, last, first), strict=True)
        ops = {start + _PERIOD * mb: Op(kind, stage, mb) for start, kind, stage in passes for mb in range(m)}
        ranks.append([ops[start] for start in sorted(ops)])
    return fill_weights(Program.single_path("", placement.vee(p, 2), m, ranks), Costs.per_rank())
