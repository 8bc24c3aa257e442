"""What ``pipert train`` refuses before it starts anything, and how it says so."""

import pytest
from typer.testing import CliRunner

import pipert
from pipert.cli import app, train

train.register(app)  # the command line does so in main()
RUNNER = CliRunner(env={"COLUMNS": "120"})


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)


def save_plan(num_ranks):
    pipert.compile(pipert.schedules.build("1f1b", num_ranks=num_ranks, num_microbatches=4)).save("plan.json")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--schedule=zb_v", "did you mean 'zb-v'"),
        ("--ranks=0", "ranks must be at least 1, not 0"),
        ("--layers=6", "6 layers do not make 8 stages"),
        ("--microbatches=-2", "microbatches must be at least 1"),
        ("--plan=plan.json --ranks=4", "plan.json is for 2 ranks, this run has 4"),
        ("--plan=plan.json --microbatches=8", "plan.json is for 4 microbatches, this run has 8"),
        ("--plan=missing.json", "missing.json"),
        ("--data=missing", "missing cannot be read: No such file"),
        ("--data=short", "has 9 bytes, one batch needs 2,049"),
        ("--resume=nowhere", "no checkpoint there"),
        ("--timed=F=1,X=2", "X"),
        ("--timed=F=-1", "F"),
        ("--dim=130", "does not divide into 4 heads"),
        ("--name=a/b", "--name"),
        ("--device=tpu", "device must be 'cpu' or 'cuda', not 'tpu'"),
        ("--device=cuda --timed=F=1,I=1,W=1", "--timed computes nothing: leave out --device"),
        ("--device=cuda --profile-layers=layers.csv", "--profile-layers takes CPU times: leave out --device"),
        ("--save=short/out", "folder short/out cannot be made"),
    ],
)
def test_refusals(options, text):
    save_plan(2)
    with open("short", "wb") as file:
        file.write(b"too short")
    result = RUNNER.invoke(app, ["train", *options.split()])
    assert isinstance(result.exception, pipert.PipertError)
    assert text in str(result.exception)
    assert result.exit_code == 1


def test_timed_stages_have_no_collectives():
    program = pipert.passes.shard(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
    pipert.compile(program).save("sharded.json")
    result = RUNNER.invoke(app, ["train", "--plan=sharded.json", "--timed=F=1,I=1,W=1,unshard=2"])
    assert "--timed spends no time on collectives such as 0UNSHARD" in str(result.exception)


def test_options_are_passed_on_as_given(monkeypatch):
    from pipert import launch

    calls, given = [], ["--untied", "--verify", "--lr=0.01", "--name=x"]

    def run(command, num_ranks):
        plan = next(option for option in command if option.startswith("--plan="))
        calls.append((command, num_ranks, plan, pipert.Plan.load(plan.removeprefix("--plan="))))
        return 0

    monkeypatch.setattr(launch, "run", run)
    result = RUNNER.invoke(app, ["train", "--ranks=2", "--schedule=1f1b", *given])
    assert result.exit_code == 0, result.output
    ((command, num_ranks, plan_option, plan),) = calls
    assert num_ranks == 2
    assert command[1:4] == ["-m", "pipert", "train"]
    assert set(command[4:]) == {*given, plan_option}
    assert (plan.name, plan.num_ranks) == ("1f1b", 2)


@pytest.mark.parametrize(("status", "code"), [(0, 0), (1, 1), (137, 1), (130, 130)])
def test_exit_codes(monkeypatch, status, code):
    from pipert import launch

    monkeypatch.setattr(launch, "run", lambda *_: status)
    assert RUNNER.invoke(app, ["train"]).exit_code == code


def test_help_names_every_group():
    text = RUNNER.invoke(app, ["train", "--help"]).output
    for group in ("Pipeline", "Model", "Training", "Prediction and proof", "Files"):
        assert group in text
    assert "--schedule" in text
