"""`pytest -m gpu`: a row for each file, and for each test that failed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter

from gpucheck.place import ROOT, Done, Place
from gpucheck.rows import Row


def run_tests(place: Place) -> list[Row]:
    """Run tests/gpu."""
    report = place.work / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = place.python("-m", "pytest", *options, "tests/gpu", cwd=ROOT)
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    place.results["failed_tests"] = [_name(case) for case in cases if _outcome(case) == "failed"]
    return rows_of(cases, done)


def rows_of(cases: list[ElementTree.Element], done: Done) -> list[Row]:
    """Return the rows of a run of pytest, given the test cases of its JUnit report, if it has written one.

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
