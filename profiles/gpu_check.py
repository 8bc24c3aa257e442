"""`make gpu`: build with CUDA in place, run tests/gpu, print a short table last, write $OUT/gpu.json.

It uses the Python that runs it: no virtual environment, no network. Whatever is missing is a failed row.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(os.environ.get("OUT", ROOT / "build" / "gpu"))


@dataclass(frozen=True)
class Row:
    """One line of the table; `seconds` is 0 where nothing was timed."""

    name: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0


def tools() -> list[Row]:
    """Whether each thing that the build and the tests need is there."""
    rows = []
    for program in ("nvcc", "cmake", "nvidia-smi"):
        path = shutil.which(program)
        rows.append(Row(program, path is not None, path or "not on PATH"))
    for module in ("pybind11", "pytest", "torch"):
        found = importlib.util.find_spec(module) is not None
        rows.append(Row(module, found, "" if found else f"{sys.executable} has no {module}"))
    return rows


def last_line(text: str) -> str:
    """Return the last line that says something, cut to a table's width."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:100] if lines else ""


def build() -> Row:
    """Build pipert/_core with CUDA, in place."""
    start = time.monotonic()
    environment = {**os.environ, "PIPERT_CUDA": "ON", "PIPERT_BUILD_DIR": str(ROOT / "build" / "gpu-extension")}
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    if result.returncode:
        print(result.stdout, result.stderr, sep="\n")
    detail = "" if result.returncode == 0 else last_line(result.stderr)
    return Row("build", result.returncode == 0, detail, time.monotonic() - start)


def run_tests() -> list[Row]:
    """Run tests/gpu; one row a test, and one if pytest itself failed."""
    report = OUT / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", f"--junitxml={report}"]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    rows = []
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        faults = [child for child in case if child.tag in ("failure", "error", "skipped")]
        detail = last_line(faults[0].get("message", "").partition("\n")[0]) if faults else ""
        rows.append(Row(case.get("name", "?"), not faults, detail, float(case.get("time", 0))))
    if status != 0 and all(row.passed for row in rows):
        rows.append(Row("pytest", False, f"exit status {status}"))
    return rows


def show(rows: list[Row]) -> None:
    """Print the table and its verdict, the last thing on the terminal."""
    width = max(len(row.name) for row in rows)
    print()
    for row in rows:
        print(f"{'ok  ' if row.passed else 'FAIL'}  {row.name:<{width}}  {row.seconds:6.1f} s  {row.detail}".rstrip())
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} ok, {failed} failed; {OUT / 'gpu.json'}")


def main() -> int:
    """Run everything that can be run; 0 if every row passed."""
    OUT.mkdir(parents=True, exist_ok=True)
    rows = tools()
    if all(row.passed for row in rows):
        rows.append(build())
        if rows[-1].passed:
            rows += run_tests()
    (OUT / "gpu.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    show(rows)
    return 0 if all(row.passed for row in rows) else 1


sys.exit(main())
