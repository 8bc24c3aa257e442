"""Which rank holds which stage."""

from __future__ import annotations


def loop(num_ranks: int, num_chunks: int) -> tuple[int, ...]:
    """Round and round: stage s on rank s mod p (Narayanan et al., arXiv 2104.04473, section 2.2.2)."""
    return tuple(range(num_ranks)) * num_chunks


def vee(num_ranks: int, num_chunks: int) -> tuple[int, ...]:
    """Down and up again: 0 … p-1, p-1 … 0 (Qi et al., arXiv 2401.10241, section 6)."""
    down = tuple(range(num_ranks))
    return tuple(rank for chunk in range(num_chunks) for rank in (down if chunk % 2 == 0 else down[::-1]))


def mirrored(path: tuple[int, ...]) -> tuple[int, ...]:
    """Lay a path from the other end: p-1 … 0 for 0 … p-1 (Li & Hoefler, arXiv 2107.06925, section 3.1)."""
    last = max(path)
    return tuple(last - rank for rank in path)
