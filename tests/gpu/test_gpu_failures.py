"""Things go wrong on a GPU: who is told what, and that the device can be used afterwards."""

import gc
import json
import signal
import time

import pytest
import torch
from pipelines import assert_same_bits, gradients, pipeline
from processes import run_ranks
from torch import nn

import pipert
from pipert.errors import LaneTimeout, PipertError, StageError

pytestmark = pytest.mark.gpu

SCENARIOS = ("raise", "not-finite", "timeout", "other-seed", "bad-data")


class Faulty(nn.Module):
    """Calls ``fault`` in one of its forwards, counted from 0 and over all steps."""

    def __init__(self, module, call, fault):
        super().__init__()
        self.module = module
        self.calls_left = call
        self.fault = fault

    def forward(self, *inputs):
        self.calls_left -= 1
        if self.calls_left == -1:
            self.fault()
        return self.module(*inputs)


def device_works(device):
    ones = torch.ones(64, 64, device=device)
    return (ones @ ones).sum().item() == 64.0**3


def fail_in_the_second_step(pipe, fault, **options):
    """Return the error of a step in which the forward of microbatch 2 of stage 1 goes wrong."""
    modules = pipe.copies()
    replica = pipe.plan.rank_of_stage(1, 2), 1
    modules[replica] = Faulty(modules[replica], len(pipe.inputs) + 2, fault)
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, **options) as engine:
        engine.step(pipe.inputs, pipe.targets)
        with pytest.raises(PipertError) as caught:
            engine.step(pipe.inputs, pipe.targets)
        with pytest.raises(PipertError, match="ended this engine"):
            engine.step(pipe.inputs, pipe.targets)
    return caught.value


def assert_a_new_engine_computes_well(pipe):
    found = []
    for _ in range(2):
        modules = pipe.copies()
        with pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine:
            result = engine.step(pipe.inputs, pipe.targets)
        found.append({"losses": result.losses} | gradients(modules))
    assert torch.isfinite(found[0]["losses"]).all()
    assert_same_bits(*found)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_a_stage_that_raises(device, schedule):
    pipe = pipeline("skip", schedule, 3, device=device)

    def fault():
        raise ValueError("the stage is broken")

    error = fail_in_the_second_step(pipe, fault)
    assert isinstance(error, StageError)
    assert (error.op, error.step) == ("1F2", 1)
    assert isinstance(error.__cause__, ValueError)
    assert device_works(device)
    assert_a_new_engine_computes_well(pipe)


@pytest.mark.kernels
def test_out_of_memory_in_mid_step(device):
    pipe = pipeline("skip", "zb-v", 3, device=device)
    assert_a_new_engine_computes_well(pipe)  # libraries take their memory
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()

    def fault():
        torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device=device)

    error = fail_in_the_second_step(pipe, fault)
    assert isinstance(error, StageError)
    assert (error.op, error.step) == ("1F2", 1)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    assert "out of memory" in str(error)
    del error
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert_a_new_engine_computes_well(pipe)


@pytest.mark.kernels
def test_a_device_that_takes_too_long_is_told_with_its_op(device):
    from pipert import _core

    pipe = pipeline("skip", "1f1b", 3, device=device)

    def fault():
        _core.cuda_spin(torch.cuda.current_stream().cuda_stream, 3_000_000_000)

    modules = [p for module in pipe.modules.values() for p in module.parameters()]
    error = fail_in_the_second_step(pipe, fault, timeout_ms=500, optimizer=torch.optim.SGD(modules, lr=0.0))
    assert isinstance(error, LaneTimeout)
    assert "did not finish within 500 ms" in str(error)
    assert "the first op that has not ended is 1F2" in str(error)
    assert device_works(device)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("outcomes")
    code, _, errors = run_ranks(3, "rank_failures.py", directory, *SCENARIOS)
    assert code == 0, errors[-4000:]
    return directory


def reports(directory, name, ranks=range(3)):
    return [json.loads((directory / f"{name}.{rank}").read_text()) for rank in ranks]


def test_every_rank_is_told_of_a_stage_that_raises(outcomes):
    first, guilty, last = reports(outcomes, "raise")
    assert (guilty["type"], guilty["cause"]) == ("StageError", "ValueError")
    assert (guilty["rank"], guilty["op"], guilty["step"]) == (1, "1F2", 1)
    for other in (first, last):
        assert (other["type"], other["rank"]) == ("PeerLost", 1)
        assert "1F2" in other["text"]


def test_a_loss_that_is_not_finite(outcomes):
    """It is looked at when the device has finished the step; where no optimizer steps, the others may be done, too."""
    (last,) = reports(outcomes, "not-finite", [2])
    assert (last["type"], last["op"], last["step"]) == ("PipertError", "2F4", 1)
    assert "step 1: the loss of microbatch 4 is inf" in last["text"]


def test_every_rank_is_told_of_one_that_takes_too_long(outcomes):
    errors = reports(outcomes, "timeout")
    assert "LaneTimeout" in {error["type"] for error in errors} <= {"LaneTimeout", "PeerLost"}
    assert all(error["op"] for error in errors if error["type"] == "LaneTimeout")


def test_every_rank_is_told_what_does_not_fit(outcomes):
    assert {error["type"] for error in reports(outcomes, "other-seed")} == {"ConfigError"}
    first, *others = reports(outcomes, "bad-data")
    assert first["type"] == "ConfigError"
    assert {error["type"] for error in others} == {"PeerLost"}


def test_the_devices_can_be_used_after_all_of_that(outcomes):
    files = [file for file in outcomes.iterdir() if file.suffix in (".0", ".1", ".2")]
    assert {file.stem for file in files} == set(SCENARIOS)
    assert all(json.loads(file.read_text())["device_works"] for file in files)


@pytest.mark.kernels
def test_nccl_with_two_ranks_on_one_gpu(tmp_path):
    """Where it refuses that, the message says which version allows it, and what works."""
    if torch.cuda.nccl.version() >= (2, 30) or torch.cuda.device_count() > 1:
        pytest.skip("this NCCL may allow it, or each rank has a GPU of its own")
    code, _, errors = run_ranks(3, "rank_failures.py", tmp_path, "nccl")
    assert code == 0, errors[-4000:]
    found = reports(tmp_path, "nccl")
    assert {error["type"] for error in found} <= {"TransportError", "PeerLost"}
    assert any("NCCL 2.30 and newer allow it" in error["text"] for error in found)
    assert any("the ipc transport works" in error["text"] for error in found)
    assert all(error["device_works"] for error in found)


@pytest.mark.parametrize("name", ["kill", pytest.param("kill-waiting", marks=pytest.mark.kernels)])
def test_a_killed_rank(tmp_path, name):
    """In the second case the devices of the others wait for its device, which is busy, when it dies."""
    begin = time.monotonic()
    code, _, errors = run_ranks(3, "rank_failures.py", tmp_path, name)
    assert code == 128 + signal.SIGKILL, errors[-4000:]
    assert time.monotonic() - begin < 60
    for error in reports(tmp_path, name, (0, 2)):
        assert (error["type"], error["rank"], error["step"]) == ("PeerLost", 1, 1)
        assert error["device_works"]
        assert error["seconds"] < 15
