"""DualPipeV: DualPipe cut in half, one copy of the model folded into a V whose two legs are the two directions.

The order is DualPipe's (DeepSeek-AI, "DeepSeek-V3 Technical Report", section 3.2.1, arXiv 2412.19437); the cut in half
is Sea AI Lab's, published with DualPipe. A forward and a backward that run together are one op, a pair.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from pipert.ir import Op
from pipert.ops import OpKind

_KINDS = {"f": OpKind.FORWARD, "b": OpKind.BACKWARD, "i": OpKind.INPUT_GRAD}


def dualpipe_v(rank: int, num_ranks: int, num_microbatches: int, num_chunks: int) -> list[Op]:
    """List the ops of ``rank``, which holds a stage of the V's way down and one of its way up.

    The paper has m >= 2p. With fewer than the 2p - 1 that the order needs to fill, the first ones are left out of it:
    its end has less of a bubble than its beginning.
    """
    length = max(num_microbatches, 2 * num_ranks - 1)
    microbatches = range(num_microbatches - length, num_microbatches)
    pattern = v_pattern(rank, num_ranks, length)
    return read_pattern(pattern, (rank, 2 * num_ranks - 1 - rank), (microbatches, microbatches))


def v_pattern(rank: int, num_ranks: int, num_microbatches: int) -> list[str]:
    """Write the order of ``rank`` in letters, for at least 2p - 1 microbatches on each leg.

    A small letter is the way down, a capital the way up: f forward, b full backward, i input gradient; w is the weight
    gradient that has waited longest. Two letters are a pair.
    """
    below = num_ranks - 1 - rank  # ranks between this one and the turn of the V
    pairs = ["fB", "Fb"] * (num_microbatches - num_ranks - below)
    if below == 0:
        pairs[:1] = "".join(pairs[:1])  # f, B: as a pair they would hold up the first backward of all
    last_backwards = "Bb" * (rank + 1)
    whole, split = last_backwards[: rank + 1], last_backwards[rank + 1 :]
    return [
        *"f" * (2 * below),
        *"fF" * (rank + 1),
        *"IwF" * below,
        *pairs,
        *["B", "Fb"] * below,
        *whole,
        *split.replace("B", "I").replace("b", "i"),
        *"wi" * below,
        *"w" * (rank + 1),
    ]


def read_pattern(pattern: Sequence[str], stages: tuple[int, int], microbatches: tuple[range, range]) -> list[Op]:
    """Turn letters into ops.

    Args:
        pattern: see `v_pattern`.
        stages: of the small letters, of the capitals.
        microbatches: the same; each letter takes the next one, and is left out where that is negative or there is none.
    """
    taken: Counter[tuple[bool, bool]] = Counter()
    delayed: deque[list[Op]] = deque()
    ops: list[Op] = []
    for letters in pattern:
        parts: list[Op] = []
        for letter in letters:
            if letter == "w":
                parts += delayed.popleft()
                continue
            leg, kind = letter.isupper(), _KINDS[letter.lower()]
            of_kind = (leg, kind is OpKind.FORWARD)
            there = [mb for mb in microbatches[leg][taken[of_kind] : taken[of_kind] + 1] if mb >= 0]
            taken[of_kind] += 1
            parts += [Op(kind, stages[leg], mb) for mb in there]
            if kind is OpKind.INPUT_GRAD:
                delayed.append([Op(OpKind.WEIGHT_GRAD, stages[leg], mb) for mb in there])
        ops += [Op.pair(*parts)] if len(parts) == 2 else parts
    return ops
