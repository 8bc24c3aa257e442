"""How much S may allocate beside its results, and how N is cut to keep to it."""

from __future__ import annotations

from pipert.errors import ConfigError
from pipert.kernels.gpu.problem import ScoreProblem
from pipert.kernels.gpu.tile_configs import BLOCK_M

#: What is allowed where nothing is asked for.
DEFAULT_BYTES = 256 * 2**20
_FLOAT = 4


def sums_bytes(problem: ScoreProblem, num_rows: int, num_parts: int) -> int:
    """Return what the sums of all pieces of some rows take."""
    return _FLOAT * problem.num_sums * num_parts * num_rows


def rows_at_a_time(problem: ScoreProblem, num_parts: int, max_workspace_bytes: int | None) -> int:
    """Return the tokens that S takes at once, whose sums may take a quarter of the workspace.

    Raises:
        ConfigError: where a single row of tiles has no room.
    """
    limit = DEFAULT_BYTES if max_workspace_bytes is None else max_workspace_bytes
    of_a_tile = sums_bytes(problem, BLOCK_M, num_parts)
    tiles = min(limit // 4, 2**30) // of_a_tile
    if tiles < 1:
        raise ConfigError(
            f"max_workspace_bytes leaves {limit} bytes to S, which needs at least {4 * of_a_tile} for a shard of "
            f"{problem.w_VD.shape[0]} rows; give more, or None for {DEFAULT_BYTES}"
        )
    return tiles * BLOCK_M


def chunk_shapes(problem: ScoreProblem, block: int, max_workspace_bytes: int | None) -> list[tuple[int, int]]:
    """Return the (tokens, columns) of fp32 logits to try at a time, in half of the workspace.

    Small ones stay in L2 between the product that writes them and the pass that reads them; large ones keep the
    products large. Columns are whole blocks.
    """
    limit = (DEFAULT_BYTES if max_workspace_bytes is None else max_workspace_bytes) // 2
    v = problem.w_VD.shape[0]
    all_cols = -(-v // block) * block
    shapes: list[tuple[int, int]] = []
    for size, rows in ((limit, 4096), (limit, 2048), (64 * 2**20, 2048), (32 * 2**20, 1024)):
        rows = min(rows, problem.num_tokens, max(1, limit // (_FLOAT * block)))
        cols = min(size, limit) // (_FLOAT * rows) // block * block
        shape = (rows, min(max(cols, block), all_cols))
        if shape not in shapes:
            shapes.append(shape)
    return shapes
