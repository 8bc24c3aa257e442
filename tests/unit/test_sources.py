"""What a user names, for every command: a schedule, a Python file, a CSV, a plan file; and what is wrong with it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import pipert
from pipert import ConfigError, PlanError, schedules, sources
from pipert.cli import app, check, plan, simulate, view
from pipert.ir.csv import to_csv
from pipert.train.config import TrainConfig
from pipert.train.plans import make_plan

for command in (check, plan, simulate, view):
    if not any(
        known.callback is getattr(command, command.__name__.split(".")[-1]) for known in app.registered_commands
    ):
        command.register(app)

SIZES = ("--ranks", "2", "--microbatches", "4")
PROGRAM = schedules.build("zb-h1", num_ranks=2, num_microbatches=4)
ROWS = [[str(op) for op in ops] for ops in PROGRAM.ranks]

PYTHON = """\
import dataclasses
import neighbour
import pipert

def schedule(request: pipert.schedules.Request) -> pipert.Program:
    p, m = request.num_ranks, request.num_microbatches
    return neighbour.build(p, m)

def rows(request):
    return {rows}

def lazy(request):
    return (tuple(row) for row in {rows})

def limited(request):
    assert request.memory_limit == 3
    return neighbour.build(request.num_ranks, request.num_microbatches, request.num_chunks)
"""
NEIGHBOUR = """\
import pipert

def build(p, m, v=None):
    return pipert.schedules.build("interleaved" if v else "zb-h1", num_ranks=p, num_microbatches=m, num_chunks=v)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a schedule in a file of each kind; the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    pathlib.Path("my.py").write_text(PYTHON.format(rows=ROWS))
    pathlib.Path("neighbour.py").write_text(NEIGHBOUR)
    pathlib.Path("my.csv").write_bytes(to_csv(PROGRAM).encode())
    pipert.compile(PROGRAM).save("my.json")
    pathlib.Path("gpipe").mkdir()  # a schedule's name means the schedule
    return tmp_path


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


TARGETS = [
    ("zb-h1", *SIZES),
    ("my.py", *SIZES),
    ("my.py:rows", *SIZES),
    ("my.py:lazy", *SIZES),
    ("my.csv",),
    ("my.json",),
]


@pytest.mark.parametrize("arguments", TARGETS, ids=lambda arguments: arguments[0])
def test_every_command_takes_every_kind_of_input(arguments: tuple[str, ...]) -> None:
    target, *sizes = arguments
    assert invoke("plan", target, *sizes, "--format", "csv").splitlines() == to_csv(PROGRAM).splitlines()
    invoke("plan", target, *sizes, "-o", "out.json")
    assert pipert.Plan.load("out.json").op_text == pipert.compile(PROGRAM).op_text
    grid = invoke("plan", target, *sizes, "--costs", "F=2,I=2,W=2", "--memory-limit", "2")
    assert "makespan 26" in grid
    assert "cannot deadlock: 2 ranks, 2 stages, 4 microbatches" in invoke("check", target, *sizes)
    limited = ("--costs", "F=2,I=2,W=2,act=2", "--memory-limit", "4")
    assert json.loads(invoke("check", target, *sizes, *limited, "--json"))["ok"]
    assert json.loads(invoke("simulate", target, *sizes, *limited, "--json"))["makespan"] == 26
    invoke("view", target, *sizes, *limited, "-o", "page.html")
    assert '"label":"planned"' in pathlib.Path("page.html").read_text()

    numbers = {"ranks": 2, "microbatches": 4} if sizes else {}
    trained = make_plan(TrainConfig(schedule=target, timed="F=1,I=1,W=1", **numbers), None)
    assert trained.op_text == pipert.compile(PROGRAM).op_text


@pytest.mark.parametrize("arguments", TARGETS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("command", ["plan", "check", "simulate", "view"])
def test_every_command_keeps_the_memory_limit(command: str, arguments: tuple[str, ...]) -> None:
    output = ("-o", "page.html") if command == "view" else ()
    with pytest.raises(ConfigError, match="holds 2 activations on rank 0, more than the memory limit of 1"):
        invoke(command, *arguments, *output, "--memory-limit", "1")


@pytest.mark.parametrize("command", [("plan",), ("check",), ("simulate",), ("view", "-o", "page.html")])
def test_every_command_limits_the_time_of_a_search(command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="a search needs a positive time limit"):
        invoke(command[0], "auto", *SIZES, *command[1:], "--time-limit", "0")


def test_what_a_python_file_is_asked() -> None:
    source = sources.load("my.py:limited", ranks=2, microbatches=4, chunks=3, memory_limit=3)
    assert source.program().num_stages == 6
    assert source.program().name == "my.py:limited"
    assert sources.load("my.py", ranks=3, microbatches=7).program().name == "my.py"


def test_a_view_of_a_file_and_a_name() -> None:
    invoke("view", "my.csv", "1f1b", *SIZES, "-o", "page.html")
    page = pathlib.Path("page.html").read_text()
    assert '"label":"my"' in page
    assert '"label":"1f1b"' in page


def test_a_still_picture_of_several() -> None:
    invoke("view", "my.csv", "1f1b", "my.json", *SIZES, "-o", "picture.svg")
    words = [node.text for node in ElementTree.parse("picture.svg").iter()]
    assert {"my.csv", "1f1b", "zb-h1"} <= set(words)
    invoke("view", "my.json", "my.json", "-o", "picture.svg")
    assert "zb-h1, planned" in pathlib.Path("picture.svg").read_text()


def test_the_plan_of_a_file_is_taken_as_it_is() -> None:
    given = pipert.compile(PROGRAM, recv_depth=1)
    given.save("my.json")
    source = sources.load("my.json")
    assert source.plan() == given
    assert source.program() == PROGRAM


def test_sizes_that_are_missing_or_too_many() -> None:
    for target in ("zb-h1", "gpipe", "my.py"):
        with pytest.raises(ConfigError, match=f"{target}' needs --ranks and --microbatches"):
            sources.load(target, ranks=2)
    for target in ("my.csv", "my.json"):
        with pytest.raises(ConfigError, match=f"--chunks goes with a schedule's name; '{target}' is a file"):
            sources.load(target, chunks=1)
    with pytest.raises(ConfigError, match=r"my\.csv is for 2 ranks, this run has 3"):
        make_plan(TrainConfig(schedule="my.csv", ranks=3), None)
    with pytest.raises(ConfigError, match="at least 1 of its microbatches, not 0"):
        sources.load("my.py", ranks=2, microbatches=0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("zbh1", "'zbh1' is neither a file nor a schedule; did you mean 'zb-h1'?"),
        ("none.py", "cannot read 'none.py': No such file"),
        ("none.csv", "cannot read 'none.csv': No such file"),
        ("none.json", "none.json: No such file"),
        ("gpipe/", "gpipe"),
    ],
)
def test_what_is_not_there(target: str, message: str) -> None:
    sizes = {"ranks": 2, "microbatches": 4} if sources.takes_sizes(target) else {}
    with pytest.raises(ConfigError) as error:
        sources.load(target, **sizes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1F0,1B0,junk\n", "bad.csv: line 2, column 3: not an op: 'junk'"),
        ("0F0,0B0\n1F0,1B0,1F0\n", "bad.csv: line 2: rank 1: 1F0: expected it once, got it at positions 0 and 2"),
        ("0F0,0B0\n1F0\n", "bad.csv: line 2: rank 1: 1B0: expected either 1B0 or 1I0 and 1W0, got neither"),
        ("0F0,0B0,1F1,1B1\n1F0,1B0\n", "bad.csv: microbatch 1 passes stage 0 in no row"),
        (
            "0F0,1F1,0B0,1B1\n0F1,1F0,1B0\n",
            "bad.csv: line 2: rank 1: 0B1: expected either 0B1 or 0I1 and 0W1, got neither",
        ),
        ("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n", "bad.csv: "),
        ("\xff", "bad.csv: not UTF-8 at byte 0"),
    ],
)
def test_faults_of_a_csv(text: str, message: str) -> None:
    pathlib.Path("bad.csv").write_bytes(text.encode("latin-1"))
    for command in (("plan",), ("check",), ("simulate",), ("view", "-o", "page.html")):
        with pytest.raises(PlanError) as error:
            invoke(command[0], "bad.csv", *command[1:])
        assert str(error.value).startswith(message)


FAULTS = [
    ("def schedule(request):\n    return 1 / 0\n", "bad.py:2: ZeroDivisionError: division by zero"),
    ("\nimport no_such_thing\n", "bad.py:2: ModuleNotFoundError: No module named 'no_such_thing'"),
    ("def schedule(request):\n    return [\n", "bad.py:2: SyntaxError: '[' was never closed"),
    ("x = 1\nraise SystemExit(3)\n", "bad.py:2: SystemExit: 3"),
    ("def other(request): ...\n", "bad.py: expected a function schedule(request); its functions are other"),
    ("schedule = 3\n", "bad.py: expected a function schedule(request); there is no function in it"),
    ("def schedule(): ...\n", "bad.py: TypeError: schedule() takes 0 positional arguments"),
    ("\ndef schedule(request):\n    pass\n", "bad.py:2: expected a pipert.Program, or for each rank a list of ops"),
    ("def schedule(request):\n    return 'abc'\n", "bad.py:1: rank 0, op 0: expected an op"),
    ("def schedule(request):\n    return [['0F0'], ['1F0', '1Q0']]\n", "got '1Q0'"),
    ("def schedule(request):\n    return [['0F0'], [None]]\n", "rank 1, op 0: expected an op"),
    ("def schedule(request):\n    return [['0F0', '0B0'], []]\n", "bad.py:1: row 2 holds no op"),
    (
        "def schedule(request):\n    return [['0F0', '0B0']]\n",
        "expected a program of 2 ranks, as requested, got one of 1",
    ),
    (
        "def schedule(request):\n    return [['0F0', '0B0'], ['1F0', '1B0']]\n",
        "expected a program of 4 microbatches, as requested, got one of 1",
    ),
    (
        f"def schedule(request):\n    rows = {ROWS}\n    rows[1].append('1F3')\n    return rows\n",
        "bad.py:1: rank 1: 1F3: expected it once, got it at positions 8 and 12",
    ),
    (
        f"def schedule(request):\n    rows = {ROWS}\n    rows[1].remove('1W3')\n    return rows\n",
        "bad.py:1: rank 1: 1W3: expected it once, as there is 1I3, got none",
    ),
    (
        "import pipert\ndef schedule(request):\n    raise pipert.ConfigError('an even number of ranks, please')\n",
        "bad.py:3: an even number of ranks, please",
    ),
    (
        "from pipert import Program\ndef schedule(request):\n"
        "    return Program('x', ((0, 1), (1,)), (0,) * 4, (('0F0',), ('1F0',)))\n",
        "bad.py:2: path 1: expected the 2 stages of path 0, got 1: replicas do not match",
    ),
    (
        "from pipert import Program\ndef schedule(request):\n"
        "    return Program('x', ((0, 'a'),), (0,) * 4, (('0F0',), ('1F0',)))\n",
        "bad.py:2: paths of the program: expected whole numbers",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=lambda value: value.splitlines()[-1][:40])
def test_faults_of_a_python_file(text: str, message: str) -> None:
    pathlib.Path("bad.py").write_text(text)
    for command in (("plan",), ("check",), ("simulate",), ("view", "-o", "page.html")):
        with pytest.raises((ConfigError, PlanError)) as error:
            invoke(command[0], "bad.py", *SIZES, *command[1:])
        assert str(error.value).startswith("bad.py")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_deadlock_names_the_file() -> None:
    rows = [["1F0", "0F0", "1B0", "0B0"], ["2F0", "3F0", "3B0", "2B0"]]
    pathlib.Path("bad.py").write_text(f"def schedule(request):\n    return {rows}\n")
    with pytest.raises(PlanError, match=r"^bad\.py: "):
        invoke("check", "bad.py", "--ranks", "2", "--microbatches", "1")


def test_there_is_no_stack_trace_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pathlib.Path("bad.py").write_text("def schedule(request):\n    return 1 / 0\n")
    root = str(pathlib.Path(pipert.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", root)
    command = [sys.executable, "-m", "pipert", "check", "bad.py", *SIZES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: bad.py:2: ZeroDivisionError: division by zero\n"
    monkeypatch.setenv("PIPERT_DEBUG", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert "return 1 / 0" in done.stderr
