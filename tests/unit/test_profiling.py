"""What an engine keeps for ``pipert profile``, and when it lets a profiler capture."""

import gc
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

import pipert
from pipert import ConfigError
from pipert.profile import recorded
from pipert.profile.request import FOLDER_VARIABLE, STEPS_VARIABLE, Request, parse_steps

PLAN = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
BATCH = torch.randn(4, 8), torch.randn(4, 8)


def make_engine(**options):
    stages = {stage: nn.Linear(8, 8) for stage in range(2)}
    return pipert.Engine(PLAN, stages, nn.functional.mse_loss, **options)


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Ask the engines for some steps."""

    def ask(steps, folder=tmp_path / "profile"):
        request = Request(folder, parse_steps(steps))
        for name, value in request.environment().items():
            monkeypatch.setenv(name, value)
        return request

    return ask


@pytest.fixture
def cuda(monkeypatch):
    """Stand in for CUDA; what is called is listed."""
    calls = []

    def note(name):
        return lambda *arguments: calls.append(" ".join((name, *arguments)))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", note("synchronize"))
    runtime = SimpleNamespace(cudaProfilerStart=note("start"), cudaProfilerStop=note("stop"))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", note("push"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", note("pop"))
    return calls


def test_the_steps_asked_for_are_written_when_the_last_one_is_done(ask):
    request = ask("1:3")
    engine = make_engine()
    for step in range(4):
        engine.step(*BATCH)
        assert bool(request.files()) == (step >= 2)
    engine.close()
    [found] = recorded.read(request)
    assert [trace.step for trace in found.steps] == [1, 2]
    assert found.plan == PLAN
    assert found.one_process
    assert list(found.steps[0].recorded()) == list(range(PLAN.num_ops))


def test_a_step_in_a_file_is_the_step_that_the_engine_reported(ask):
    request = ask("0:1")
    result = make_engine().step(*BATCH)
    [found] = recorded.read(request)
    assert found.steps[0] == result.trace


@pytest.mark.parametrize("end", ["close", "vanish"])
def test_fewer_steps_are_written_at_the_end(ask, end):
    request = ask("1:100")
    engine = make_engine()
    for _ in range(3):
        engine.step(*BATCH)
    assert not request.files()
    if end == "close":
        engine.close()
    del engine
    gc.collect()
    [found] = recorded.read(request)
    assert [trace.step for trace in found.steps] == [1, 2]


def test_steps_are_numbered_as_the_training_loop_does(ask):
    request = ask("7:8")
    with make_engine() as engine:
        engine.num_steps = 6
        engine.step(*BATCH)
        engine.eval_step(*BATCH)
        engine.step(*BATCH)
    [found] = recorded.read(request)
    assert [trace.step for trace in found.steps] == [7]


def test_engines_are_told_apart(ask):
    request = ask("0:1")
    for _ in range(2):
        with make_engine() as engine:
            engine.step(*BATCH)
    assert len(recorded.read(request)) == 2


def test_without_being_asked_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with make_engine() as engine:
        engine.step(*BATCH)
        assert not engine._profiling._kept
    assert not list(tmp_path.iterdir())


def test_too_few_steps_are_told(ask):
    request = ask("5:9")
    with make_engine() as engine:
        engine.step(*BATCH)
    with pytest.raises(ConfigError, match="no step from 5 to 8 was run to its end"):
        recorded.read(request)


def test_no_engine_is_told(ask):
    with pytest.raises(ConfigError, match=r"made no pipert\.Engine"):
        recorded.read(ask("0:1"))


def test_ranks_that_ran_other_plans_are_told(ask):
    request = ask("0:1")
    make_engine().step(*BATCH)
    [files] = request.files().values()
    text = files[0].read_text()
    request.file_of(1, int(files[0].stem.rpartition("-")[2])).write_text(text.replace('"1f1b"', '"other"'))
    with pytest.raises(ConfigError, match="ran different plans"):
        recorded.read(request)


def test_a_file_that_cannot_be_written_ends_nothing(ask, tmp_path, capsys):
    (tmp_path / "file").touch()
    ask("0:1", tmp_path / "file" / "below")
    with make_engine() as engine:
        engine.step(*BATCH)
        engine.step(*BATCH)
    assert capsys.readouterr().err.count("pipert: no profile was written") == 1


def test_a_capture_lasts_from_the_first_step_to_the_last(ask, cuda):
    ask("1:3")
    with make_engine() as engine:
        for _ in range(4):
            engine.step(*BATCH)
    expected = ["synchronize", "start", "push pipert step 1", "pop", "push pipert step 2", "pop", "synchronize", "stop"]
    assert cuda == expected


def test_a_capture_ends_with_the_engine(ask, cuda):
    ask("0:9")
    with make_engine() as engine:
        engine.step(*BATCH)
    assert cuda == ["synchronize", "start", "push pipert step 0", "pop", "synchronize", "stop"]


@pytest.mark.parametrize("group_is_there", [True, False])
def test_ranks_end_a_capture_together(ask, cuda, monkeypatch, tmp_path, group_is_there):
    def all_reduce(*arguments, **options):
        cuda.append("meet")
        return meet(*arguments, **options)

    ask("0:9")
    meet = dist.all_reduce
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        plan = pipert.compile(pipert.schedules.build("gpipe", num_ranks=1, num_microbatches=2))
        group = dist.group.WORLD
        engine = pipert.Engine(plan, {0: nn.Linear(8, 8)}, nn.functional.mse_loss, process_group=group)
        engine.step(*BATCH)
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        if not group_is_there:
            dist.destroy_process_group()
        engine.close()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert cuda[-3:] == ["synchronize", "meet", "stop"]


def test_a_step_that_is_begun_anew_has_one_range(ask, cuda):
    ask("0:1")
    with make_engine() as engine:
        with pytest.raises(ConfigError):
            engine.step(None, BATCH[1])
        engine.step(*BATCH)
    assert cuda[2:6] == ["push pipert step 0", "pop", "push pipert step 0", "pop"]
    assert cuda.count("start") == cuda.count("stop") == 1


def test_after_a_failure_nothing_waits_for_the_device(ask, cuda):
    request = ask("1:9")
    engine = make_engine()
    engine.step(*BATCH)
    engine.step(*BATCH)
    with pytest.raises(pipert.errors.StageError):
        engine.step(torch.randn(4, 5), BATCH[1])
    assert cuda[-3:] == ["push pipert step 2", "pop", "stop"]
    assert [trace.step for trace in recorded.read(request)[0].steps] == [1]


def test_without_cuda_nothing_is_captured(ask, monkeypatch):
    ask("0:1")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: pytest.fail("CUDA is not in use"))
    make_engine().step(*BATCH)


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "a:b", "-1:3", "1:2:3", "1.5:2", "1 :2", "٣:٥"])
def test_steps_that_are_none(text, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="steps are given as A:B"):
        parse_steps(text)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(STEPS_VARIABLE, text)
    with pytest.raises(ConfigError, match=STEPS_VARIABLE):
        make_engine()


def test_steps_that_are_empty():
    assert parse_steps("0:1") == range(1)
    for text in ("2:2", "3:1"):
        with pytest.raises(ConfigError, match="B must be larger than A"):
            parse_steps(text)
