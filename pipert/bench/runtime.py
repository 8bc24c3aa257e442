"""Everything that `pipert bench runtime` measures."""

from __future__ import annotations

from collections.abc import Callable

from pipert.bench import planning, worker
from pipert.bench.figure import Figure

PARTS: dict[str, Callable[[], list[Figure]]] = {
    "planning": planning.measure,
    "one_rank": lambda: worker.measure("one_rank", 1),
    "pipelines": lambda: worker.measure("pipelines", 4),
    "timed": lambda: worker.measure("timed", 4),
    "transport": lambda: worker.measure("transport", 2),
}
