"""How commands wait for a search: options, Ctrl-C."""

import dataclasses
import os
import signal

import pytest
import typer
from typer.testing import CliRunner

from pipert import ConfigError, schedules
from pipert.cli import plan as command
from pipert.cli.searching import searching

app = typer.Typer()
command.register(app)
SIZES = {"num_ranks": 6, "num_microbatches": 24, "memory_limit": 4}


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_search_and_takes_its_best(capsys):
    told = []
    with searching(60.0, 0) as effort:

        def progress(best, share):
            told.append(best)
            if len(told) == 2:
                interrupt()

        program = schedules.build("auto", **SIZES, effort=dataclasses.replace(effort, progress=progress))
    assert program.num_microbatches == 24
    assert 2 <= len(told) < 20
    assert capsys.readouterr().err == "interrupted: this is the best so far\n"


def test_ctrl_c_outside_of_a_search_ends_the_command():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), searching(None, 0):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_seed_and_the_time_limit_reach_the_search():
    arguments = ["auto", "--ranks", "2", "--microbatches", "3", "--memory-limit", "1.5", "--format", "csv"]
    assert CliRunner().invoke(app, [*arguments, "--time-limit", "0.1", "--seed", "1"]).exit_code == 0
    result = CliRunner().invoke(app, [*arguments, "--time-limit", "-1"])
    assert isinstance(result.exception, ConfigError)
    assert "positive time limit, not -1 s" in str(result.exception)
