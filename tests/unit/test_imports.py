"""What may be imported when: planning needs no torch, and importing pipert needs nothing that is heavy."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Runs the command line with imports of torch and numpy made to fail.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from pipert.cli import main
main()
"""


def run(code, *arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_import_needs_neither_torch_nor_the_core():
    result = run("import sys, pipert; print(sorted({'torch', 'numpy', 'pipert._core'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


PLANNING = [
    "--version",
    "--help",
    "schedules",
    "plan zb-v --ranks 2 --microbatches 4",
    "plan zb-v --ranks 2 --microbatches 4 --format json -o plan.json",
    "check plan.json",
    "simulate plan.json --json",
    "view plan.json -o timeline.html",
]


def test_planning_needs_no_torch(tmp_path):
    for command in PLANNING:
        result = run(WITHOUT_TORCH, *command.split(), cwd=tmp_path)
        assert result.returncode == 0, (command, result.stderr)


def test_unknown_name_is_an_attribute_error():
    import pipert

    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = pipert.compil


def test_every_public_name_is_there():
    import pipert

    assert [name for name in pipert.__all__ if not hasattr(pipert, name)] == []
