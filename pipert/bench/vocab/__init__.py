"""Everything that `pipert bench vocab` measures: vocabulary-parallel output layers.

First the layer that has bars, beside its bare matrix products; then whole layers beside each peer's; then the layers of
known models beside theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from pipert.bench.figure import Figure
from pipert.bench.vocab import beside
from pipert.bench.vocab.peers import PEERS
from pipert.bench.vocab.shapes import MODELS

PARTS: dict[str, Callable[[], list[Figure]]] = {
    "v_128k": functools.partial(beside.floor, "v_128k"),
    **{f"beside_{part}": functools.partial(beside.peer, part) for part in PEERS},
    **{part: functools.partial(beside.floor, part) for part in MODELS},
}
