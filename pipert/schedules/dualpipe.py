"""DualPipe: two copies of the model in opposite directions, forwards of one overlapped with backwards of the other.

DeepSeek-AI, "DeepSeek-V3 Technical Report", section 3.2.1, arXiv 2412.19437.
"""

from __future__ import annotations

from pipert.ir import Program
from pipert.schedules import placement
from pipert.schedules.dualpipe_v import read_pattern, v_pattern
from pipert.schedules.request import Request


def dualpipe(request: Request) -> Program:
    """Make the program: the V of DualPipeV for p / 2 ranks, unfolded over p ranks in both directions.

    A rank of the first half works like the V's: the direction that starts on its side is the leg down, the direction
    that arrives from the other half is the leg up. The second half mirrors the first.

    The paper has an even p, an even m, and m >= 2p. An odd m takes as long as m + 1, a small one what it takes in
    DualPipeV. An odd p is p + 1 ranks with one of the two at the turn taken away, and has their bubble and their peak.
    """
    p, m = request.num_ranks, request.num_microbatches
    num_paths = min(m, p, 2)
    half = (p + 1) // 2
    longest = -(-m // num_paths)
    length = max(longest, 2 * half - 1)
    first = num_paths * (longest - length)
    directions = (range(first, m, num_paths), range(first + 1, m, 2) if num_paths == 2 else range(0))
    ranks = []
    for rank in range(p):
        outer = min(rank, p - 1 - rank)
        pattern = v_pattern(min(rank, 2 * half - 1 - rank), half, length)
        legs = directions if rank == outer else directions[::-1]
        ranks.append(tuple(read_pattern(pattern, (outer, p - 1 - outer), legs)))
    down = placement.loop(p, 1)
    paths = (down, placement.mirrored(down))[:num_paths]
    return Program("", paths, tuple(microbatch % num_paths for microbatch in range(m)), tuple(ranks))
