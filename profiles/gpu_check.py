"""`make gpu`: build with CUDA in place, test, train and measure on the GPU, and print a short table last.

It uses the Python that runs it: no virtual environment, no network. Whatever is missing is a failed row, and the steps
after it are tried all the same. Results go to $OUT (build/gpu): gpu.json, gpu.log, bench.json, pictures, a timeline.

    python profiles/gpu_check.py [all|test|bench]
    python profiles/gpu_check.py --record FOLDER      file such results under profiles/results
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gpucheck import benching, machine, plots
from gpucheck.building import build
from gpucheck.place import ROOT, Place
from gpucheck.record import RecordError, record
from gpucheck.rows import Row, table
from gpucheck.sanitizing import sanitize
from gpucheck.testing import run_tests
from gpucheck.training import train

LIMIT_S = 520.0
"""Of everything together."""
MOST_LOG_CHARS = 8_000_000
FILES = ("gpu.json", "gpu.log", benching.NAME, plots.NAME, "train-trace.json", "train-timeline.html")
"""What is left in the folder for results."""


@dataclass(frozen=True)
class Step:
    """A part of the check, the longest that it may take, and what the steps before it must leave it."""

    run: Callable[[Place], list[Row]]
    limit_s: float
    least_s: float


def pictures(place: Place) -> list[Row]:
    """Draw what was measured."""
    begin = time.monotonic()
    name = plots.draw(place.out, place.results)
    return [Row("pictures", name is not None, name or "nothing was measured", time.monotonic() - begin)]


STEPS = {
    "tools": Step(lambda place: machine.tools(), 20, 5),
    "build": Step(build, 150, 60),
    "tests": Step(run_tests, 190, 90),
    "training": Step(train, 130, 70),
    "benchmarks": Step(benching.bench, 280, 140),
    "sanitizer": Step(sanitize, 120, 50),
    "pictures": Step(pictures, 30, 10),
}
PARTS = {
    "all": tuple(STEPS),
    "test": ("tools", "build", "tests", "sanitizer"),
    "bench": ("tools", "build", "benchmarks", "pictures"),
}


def run_steps(names: tuple[str, ...], place: Place, end: float) -> list[Row]:
    """Run the steps, each within its own limit and so that all have ended by ``end``; return their rows."""
    rows: list[Row] = []
    for index, name in enumerate(names):
        step, begin = STEPS[name], time.monotonic()
        place.deadline = min(begin + step.limit_s, end - sum(STEPS[later].least_s for later in names[index + 1 :]))
        print(f"{name} …", flush=True)
        try:
            rows += step.run(place)
        except Exception as error:
            rows.append(Row(name, False, f"{type(error).__name__}: {error}", time.monotonic() - begin))
    return rows


def check(part: str, out: Path) -> int:
    """Run everything of a part that can be run; 0 if every row passed."""
    begin = time.monotonic()
    work = ROOT / "build" / "gpu-work"
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)  # of an earlier check
    with (work / "gpu.log").open("w") as log:
        place = Place(out, work, begin + LIMIT_S, log)
        place.results |= {
            "format": "pipert-gpu-check",
            "command": [Path(sys.executable).name, *sys.argv],
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": machine.commit(),
            "sources": machine.sources_digest(),
            "machine": machine.describe(),
        }
        rows = run_steps(PARTS[part], place, begin + LIMIT_S)
    (out / "gpu.log").write_text((work / "gpu.log").read_text()[-MOST_LOG_CHARS:])
    report = place.results | {
        "gpu_afterwards": machine.gpu(),
        "seconds": time.monotonic() - begin,
        "rows": [asdict(row) for row in rows],
        "files": sorted(name for name in FILES if (out / name).exists()),
    }
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table(rows)}; {time.monotonic() - begin:.0f} s; {out / 'gpu.json'}, {out / 'gpu.log'}")
    return 0 if all(row.passed for row in rows) else 1


def main() -> int:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=tuple(PARTS), default="all")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="file the results in FOLDER; runs nothing")
    arguments = parser.parse_args()
    if arguments.record is None:
        return check(arguments.part, Path(os.environ.get("OUT", ROOT / "build" / "gpu")).resolve())
    try:
        for file in record(arguments.record):
            print(file.relative_to(ROOT))
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
