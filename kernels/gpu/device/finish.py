"""The statistics of a row from the sums of its pieces, in a fixed order, and which rows must be done again.

Shapes: N tokens, R rows of a program; K = 3 sums of P pieces; 4 statistics.
"""

import triton
import triton.language as tl


@triton.jit
def finish_statistics(
    statistics_4N, partial_KPN, flagged_N, local_N, N, num_parts, max_gap,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, EXTRA: tl.constexpr,
    REPAIRED: tl.constexpr, REPAIR_ROWS: tl.constexpr,
):  # fmt: skip
    """Write rows 1 and 3 of the statistics; flag the rows whose maximum is too far above their reference.

    The maximum becomes the reference of a flagged row. REPAIRED is the second time: only for the rows that share a tile
    of REPAIR_ROWS rows with a flagged one, since all of them have been done again.
    """
    first = tl.program_id(0) * BLOCK_R
    row_R = first + tl.arange(0, BLOCK_R)
    inside_R = row_R < N
    wanted = 1
    if REPAIRED:
        tile = (first // REPAIR_ROWS) * REPAIR_ROWS + tl.arange(0, REPAIR_ROWS)
        wanted = tl.max(tl.load(flagged_N + tile, mask=tile < N, other=0), 0)
    if wanted != 0:
        sum_R = tl.zeros((BLOCK_R,), dtype=tl.float32)
        extra_R = tl.zeros((BLOCK_R,), dtype=tl.float32)
        max_R = tl.full((BLOCK_R,), float("-inf"), dtype=tl.float32)
        for first_part in range(0, num_parts, BLOCK_P):
            part = first_part + tl.arange(0, BLOCK_P)
            inside = (part < num_parts)[:, None] & inside_R[None, :]
            at = partial_KPN + part[:, None] * N + row_R[None, :]
            sum_R += tl.sum(tl.load(at, mask=inside, other=0.0), 0)
            max_R = tl.maximum(max_R, tl.max(tl.load(at + num_parts * N, mask=inside, other=float("-inf")), 0))
            if EXTRA:
                extra_R += tl.sum(tl.load(at + 2 * num_parts * N, mask=inside, other=0.0), 0)
        reference_R = tl.load(statistics_4N + row_R, mask=inside_R, other=0.0)
        target_R = tl.load(statistics_4N + 2 * N + row_R, mask=inside_R, other=0.0)
        held_R = tl.load(local_N + row_R, mask=inside_R, other=-1) >= 0
        exp_R = tl.where(held_R, tl.exp(target_R - reference_R), 0.0)
        sum_R += exp_R
        if EXTRA == 1:
            extra_R += target_R
        if EXTRA == 2:
            extra_R += tl.where(exp_R == 0, 0.0, exp_R * target_R)
        tl.store(statistics_4N + N + row_R, sum_R, mask=inside_R)
        tl.store(statistics_4N + 3 * N + row_R, extra_R, mask=inside_R)
        if not REPAIRED:
            max_R = tl.where(held_R, tl.maximum(max_R, target_R), max_R)
            far_R = (max_R > float("-inf")) & ~(max_R - reference_R <= max_gap)
            tl.store(flagged_N + row_R, far_R.to(tl.int32), mask=inside_R)
            tl.store(statistics_4N + row_R, tl.where(far_R, max_R, reference_R), mask=inside_R)
