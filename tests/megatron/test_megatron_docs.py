"""What docs/megatron.md shows: every command is run, and the table is the one that the engine goes by."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from script_runs import needs_megatron

from pipert.megatron.contract import CONTRACT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "megatron.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)


@needs_megatron
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(tmp_path, command):
    for name in ("tests", "pipert", "kernels"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    standalone = command.replace("torchrun ", "torchrun --standalone ")
    done = subprocess.run(
        standalone, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if "verify-dropin" in command:
        assert "have the same bits" in done.stdout
    else:
        assert "iteration 5/5" in done.stdout
    if "pipert.megatron" in command:
        files = {path.name for path in (tmp_path / "runs" / "latest").iterdir()}
        assert files == {"summary.json", "plan.json", "trace.json", "timeline.html"}


def test_the_table_is_the_contract():
    assert re.search(r"<!-- contract -->\n(.*)\n<!-- /contract -->", PAGE, re.DOTALL)[1] == table()


def table():
    """Return the contract as the documentation shows it, a table in Markdown."""
    rows = [f"| {_code(item.name)} | {item.verdict} | {item.note} |" for item in CONTRACT]
    return "\n".join(["| item | | how, or why not |", "|---|---|---|", *rows])


def _code(name):
    """Set names of options in code, descriptions in plain text."""
    parts = name.split(", ")
    return ", ".join(f"`{part}`" if part.isidentifier() else part for part in parts)
