"""One rank of a benchmark: ``python -m pipert.bench.worker AREA OUT``, under torchrun's environment variables."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist

from pipert import launch
from pipert.bench.figure import Figure, from_fields
from pipert.errors import PipertError


def measure(area: str, num_ranks: int, environment: Mapping[str, str] | None = None) -> list[Figure]:
    """Run ``pipert.bench.<area>.measure`` in ``num_ranks`` fresh processes of one thread each; return rank 0's figures.

    ``environment`` is added to theirs.

    Raises:
        PipertError: a rank failed; its own message stands on stderr.
    """
    with tempfile.TemporaryDirectory() as folder, _added(environment or {}):
        out = pathlib.Path(folder) / "figures.json"
        status = launch.run([sys.executable, "-m", "pipert.bench.worker", area, str(out)], num_ranks)
        if status != 0:
            raise PipertError(f"the benchmark {area!r} failed in its {num_ranks} ranks with exit status {status}")
        return [from_fields(fields) for fields in json.loads(out.read_text())]


@contextmanager
def _added(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(area: str, out: str) -> None:
    """Measure, and let rank 0 write the figures."""
    dist.init_process_group("gloo")
    figures = importlib.import_module(f"pipert.bench.{area}").measure()
    if dist.get_rank() == 0:
        pathlib.Path(out).write_text(json.dumps([dataclasses.asdict(figure) for figure in figures]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
