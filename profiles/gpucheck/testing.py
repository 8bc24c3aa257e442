"""`pytest -m gpu`: a row for each file, and for each test that failed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpucheck.place import ROOT, Done, Place
from gpucheck.rows import Row

TESTS = ROOT / "tests" / "gpu"
BESIDE_EACH_OTHER = (
    ("test_gpu_processes.py",),
    ("test_gpu_failures.py", "test_gpu_train.py"),
    ("test_gpu_vocab.py",),
    ("test_gpu_vocab_kernels.py",),
)
"""These wait most of the time, for processes to start or kernels to compile; so they run beside each other and all the
rest."""
TIMES = ("test_gpu_trace.py",)
"""These look at times, so nothing runs beside them."""


def run_tests(place: Place) -> list[Row]:
    """Run tests/gpu."""
    named = {name for group in (*BESIDE_EACH_OTHER, TIMES) for name in group}
    others = [file.name for file in sorted(TESTS.glob("test_*.py")) if file.name not in named]
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(_pytest, place, names, share=0.85) for names in (*BESIDE_EACH_OTHER, others)]
        found = [run.result() for run in runs]
    found.append(_pytest(place, TIMES))
    place.results["failed_tests"] = [_name(case) for cases, _ in found for case in cases if _outcome(case) == "failed"]
    return [row for cases, done in found for row in rows_of(cases, done)]


def _pytest(place: Place, names: Sequence[str], share: float = 1.0) -> tuple[list[ElementTree.Element], Done]:
    """Return the test cases of pytest's report, if it has written one, and how it ended."""
    report = place.work / f"{Path(names[0]).stem}.xml"
    report.unlink(missing_ok=True)
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = place.python("-m", "pytest", *options, *(TESTS / name for name in names), cwd=ROOT, share=share)
    return list(ElementTree.parse(report).iter("testcase")) if report.exists() else [], done


def rows_of(cases: list[ElementTree.Element], done: Done) -> list[Row]:
    """Return the rows of a run of pytest, given its test cases.

    Tests of a file that failed for the same reason share a row.
    """
    rows = []
    for name in dict.fromkeys(map(_file, cases)):
        rows.append(_file_row(name, [case for case in cases if _file(case) == name]))
    failures: dict[tuple[str, str], list[ElementTree.Element]] = {}
    for case in cases:
        if _outcome(case) == "failed":
            failures.setdefault((_file(case), _message(case)), []).append(case)
    for (_, message), (first, *others) in failures.items():
        more = f" (and {len(others)} more)" if others else ""
        rows.append(Row(f"  {_name(first)}", False, message + more, float(first.get("time", 0))))
    if done.timed_out or done.status not in (0, 1) or not cases:
        rows.append(Row("pytest", False, done.why, done.seconds))
    return rows


def _name(case: ElementTree.Element) -> str:
    return f"{_file(case)}::{case.get('name')}"


def _file_row(name: str, cases: list[ElementTree.Element]) -> Row:
    outcomes = Counter(map(_outcome, cases))
    detail = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    reasons = sorted({_message(case) for case in cases if _outcome(case) == "skipped"})
    if reasons:
        detail += f" ({'; '.join(reasons)[:120]})"
    seconds = sum(float(case.get("time", 0)) for case in cases)
    return Row(name, outcomes["failed"] == 0 and outcomes["passed"] > 0, detail, seconds)


def _file(case: ElementTree.Element) -> str:
    return (case.get("classname") or case.get("name") or "?").rpartition(".")[2]


def _outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"


def _message(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            return (child.get("message") or "").strip().partition("\n")[0][:160]
    return ""
