"""Orders from equal slots: every microbatch goes down its path and back without waiting once.

With S stages, a microbatch that enters in slot e has its forward of stage s in slot e + s, its backward in slot
e + 2S - 1 - s. On zigzag paths (down the ranks, up, down, ...) these are, for each rank, slots p apart of the one
parity and slots p apart of the other. So p microbatches (half of them on the mirrored path, where there is one) that
enter two slots apart never meet in a slot: they are a *unit*, and the order of their slots is that of Chimera (Li &
Hoefler, arXiv 2107.06925, section 3.1).

The next unit enters S slots later. From there on a slot holds a backward of one unit and then a forward of the next, as
in 1F1B. Where units enter 2S slots apart and do not mix (direct concatenation, section 3.5 of the same paper), the peak
is the same, and each unit adds to the bubble what its backwards take longer than its forwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.schedules.interleaved import even_groups


def in_equal_slots(paths: Sequence[tuple[int, ...]], num_microbatches: int) -> Program:
    """Order the ops of each rank by their slots, those of one slot by their microbatches.

    All ranks agree with the order of the slots, so it cannot deadlock. Where p does not divide m, the units are as even
    as can be and none (unless m < p) is smaller than p: by simulation the best of the ways to cut them.

    Args:
        paths: one zigzag path, or one and its mirror image; microbatches of a unit take them in turn. A path that no
            microbatch takes is left out, as is the mirror image of a single rank.
        num_microbatches: m.
    """
    paths = tuple(dict.fromkeys(paths))
    num_ranks, num_stages = max(paths[0]) + 1, len(paths[0])
    num_chunks = num_stages // num_ranks
    num_units = max(1, num_microbatches // num_ranks)
    if num_chunks * len(paths) == 2:
        num_units = 1  # units would follow each other just as the microbatches in them do
    # Both directions of an odd number of ranks meet on the middle one, in the same slot: one starts a slot later.
    offset = num_ranks % 2
    path_of: list[int] = []
    slots: list[list[tuple[int, int, Op]]] = [[] for _ in range(num_ranks)]
    for unit in even_groups(num_microbatches, num_units):
        for position, microbatch in enumerate(unit):
            turn, path = divmod(position, len(paths))
            path_of.append(path)
            enter = num_chunks * unit.start + 2 * turn + offset * path
            leave = enter + 2 * num_stages - 1
            for stage, rank in enumerate(paths[path]):
                slots[rank].append((enter + stage, microbatch, Op(OpKind.FORWARD, stage, microbatch)))
                slots[rank].append((leave - stage, microbatch, Op(OpKind.BACKWARD, stage, microbatch)))
    ranks = tuple(tuple(op for *_, op in sorted(row, key=lambda slot: slot[:2])) for row in slots)
    return Program("", paths[: max(path_of) + 1], tuple(path_of), ranks)
