"""Rows of X, so many at a time that E' of them fits a bound."""

from __future__ import annotations

from collections.abc import Iterator

_TILE = 128
"""Rows that a matrix product's tile has, about: chunks are a multiple of it where they can."""


def row_chunks(num_rows: int, row_bytes: int, max_bytes: int) -> Iterator[slice]:
    """Split ``num_rows`` rows into chunks of at most ``max_bytes``, or of one row where that is more."""
    size = max(1, max_bytes // max(1, row_bytes))
    if size > _TILE:
        size -= size % _TILE
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
