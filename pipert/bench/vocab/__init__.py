"""Everything that `pipert bench vocab` measures: vocabulary-parallel output layers.

A part for each model's layer, beside the bare matrix products, and one for each peer, beside unsplit layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from pipert.bench.figure import Figure
from pipert.bench.vocab import beside
from pipert.bench.vocab.peers import PEERS
from pipert.bench.vocab.shapes import SHAPES

PARTS: dict[str, Callable[[], list[Figure]]] = {
    **{part: functools.partial(beside.floor, part) for part in SHAPES},
    **{f"beside_{part}": functools.partial(beside.peer, part) for part in PEERS},
}
