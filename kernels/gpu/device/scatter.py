"""Rows added to the rows of a matrix that their tokens name, in the same order every time, without atomics.

The tokens are sorted by target, stably. First, each block of B sorted tokens is summed run by run: a run's sum is added
to its row of the matrix, but where the run began in an earlier block, it is put into the block's entry of ``heads``.
Then the block in which a run began adds the heads of the blocks that it goes on in. So no program walks more than B
tokens one by one, and each row of the matrix has one writer at a time.

Shapes: N tokens, D hidden, V rows of the shard, B tokens of a block, H = ceil(N / B) blocks, C columns of a program.
"""

import triton
import triton.language as tl


@triton.jit
def sort_tokens(local_N, order_N, sorted_N, N, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Write the stable order of the tokens by target, and the targets in it: each token counts those before it."""
    token_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    target_B = tl.load(local_N + token_B, mask=token_B < N, other=0).to(tl.int32)
    place_B = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, N, CHUNK):
        other_C = first + tl.arange(0, CHUNK)
        past = 2147483647  # after all others
        target_C = tl.load(local_N + other_C, mask=other_C < N, other=past).to(tl.int32)
        less = target_C[None, :] < target_B[:, None]
        same = (target_C[None, :] == target_B[:, None]) & (other_C[None, :] < token_B[:, None])
        place_B += tl.sum((less | same).to(tl.int32), 1)
    tl.store(order_N + place_B, token_B.to(tl.int64), mask=token_B < N)
    tl.store(sorted_N + place_B, target_B.to(tl.int64), mask=token_B < N)


@triton.jit
def add_runs(
    main_VD, rows_ND, scale_N, order_N, sorted_N, heads_HD, N, D,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Do the first step for a block of tokens."""
    block = tl.program_id(0)
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = col < D
    first = block * BLOCK_B
    end = tl.minimum(first + BLOCK_B, N)
    before = tl.load(sorted_N + first - 1, mask=first > 0, other=-1)
    begun = tl.load(sorted_N + first) == before
    acc = tl.zeros((BLOCK_C,), dtype=tl.float32)
    # Tokens with the target -1 come first.
    if tl.load(sorted_N + end - 1) >= 0:
        for place in range(first, end):
            target = tl.load(sorted_N + place)
            token = tl.load(order_N + place)
            row = tl.load(rows_ND + token * D + col, mask=inside, other=0.0).to(tl.float32)
            if SCALE:
                row *= tl.load(scale_N + token)
            acc += row
            if target != tl.load(sorted_N + place + 1, mask=place + 1 < end, other=-2):
                if begun:
                    tl.store(heads_HD + block.to(tl.int64) * D + col, acc, mask=inside)
                elif target >= 0:
                    at = main_VD + target * D + col
                    tl.store(at, tl.load(at, mask=inside, other=0.0) + acc, mask=inside)
                begun = False
                acc = tl.zeros((BLOCK_C,), dtype=tl.float32)


@triton.jit
def add_heads(main_VD, sorted_N, heads_HD, N, D, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr):
    """Do the second step for the block in which a run began."""
    block = tl.program_id(0)
    first = block * BLOCK_B
    col = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    next_first = first + BLOCK_B
    target = tl.load(sorted_N + next_first - 1, mask=next_first < N, other=-1)
    goes_on = tl.load(sorted_N + next_first, mask=next_first < N, other=-2) == target
    begun_before = tl.load(sorted_N + first - 1, mask=first > 0, other=-1) == target
    if goes_on & (target >= 0) & ~begun_before:
        acc = tl.zeros((BLOCK_C,), dtype=tl.float32)
        head = block + 1
        left = 1
        while left != 0:
            head_H = head + tl.arange(0, BLOCK_H)
            place_H = head_H * BLOCK_B
            mine_H = tl.load(sorted_N + place_H, mask=place_H < N, other=-2) == target
            mine = mine_H[:, None] & (col < D)[None, :]
            acc += tl.sum(tl.load(heads_HD + head_H.to(tl.int64)[:, None] * D + col[None, :], mask=mine, other=0.0), 0)
            head += BLOCK_H
            left = tl.min(mine_H.to(tl.int32), 0)
        at = main_VD + target * D + col
        tl.store(at, tl.load(at, mask=col < D, other=0.0) + acc, mask=col < D)
