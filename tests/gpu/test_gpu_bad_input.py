"""What an engine refuses on a GPU, and how it says so."""

import pytest
import torch
from pipelines import pipeline
from torch import nn

import pipert
from pipert.errors import ConfigError, PipertError, StageError

pytestmark = [pytest.mark.gpu, pytest.mark.kernels]


@pytest.fixture
def pipe(device):
    return pipeline("skip", "1f1b", 2, device=device)


class Elsewhere(nn.Module):
    """Hands on what is in host memory."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        x, first = self.module(*inputs)
        return x.cpu(), first


def test_stages_on_two_devices(pipe):
    modules = pipe.copies()
    modules[1, 1].cpu()
    with pytest.raises(ConfigError, match=r"stage 0: norm.weight is on cuda:0, stage 1: norm.weight on cpu; a process"):
        pipert.Engine(pipe.plan, modules, pipe.loss_fn)


def test_inputs_on_the_host(pipe):
    with (
        pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn) as engine,
        pytest.raises(ConfigError, match=r"inputs: a tensor on cpu; the stages are on cuda:0"),
    ):
        engine.step([x.cpu() for x in pipe.inputs], pipe.targets)


def test_inputs_on_the_device_for_stages_on_the_host(pipe):
    modules = {replica: module.cpu() for replica, module in pipe.copies().items()}
    with (
        pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine,
        pytest.raises(ConfigError, match=r"inputs: a tensor on cuda:0; the stages are on cpu"),
    ):
        engine.step(pipe.inputs, pipe.targets)


def test_targets_on_the_host(pipe):
    with (
        pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn) as engine,
        pytest.raises(PipertError, match=r"1F0.*device") as caught,
    ):
        engine.step(pipe.inputs, [y.cpu() for y in pipe.targets])
    assert caught.value.op == "1F0"


def test_a_stage_that_hands_on_what_is_in_host_memory(pipe):
    modules = pipe.copies()
    modules[0, 0] = Elsewhere(modules[0, 0])
    with (
        pipert.Engine(pipe.plan, modules, pipe.loss_fn) as engine,
        pytest.raises(StageError, match=r"0F0.* a tensor on cpu is handed on by a stage on cuda:0"),
    ):
        engine.step(pipe.inputs, pipe.targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transport": "shm"}, r"transport='shm' is for host memory; for a CUDA device .* there is local, ipc"),
        ({"transport": "pigeon"}, "transport is one of local, shm, ipc, .*not 'pigeon'"),
        ({"link_delays_ms": {(0, 1): (1.0, 0.0)}}, "link_delays_ms: messages on a CUDA device cannot be held back"),
    ],
)
def test_options_that_do_not_fit(pipe, options, message):
    with pytest.raises(ConfigError, match=message):
        pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn, **options)


def test_a_trace_that_is_read_too_late(pipe):
    with pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
        engine.step(pipe.inputs, pipe.targets)
        with pytest.raises(ConfigError, match="must be read before the next step"):
            _ = result.trace


def test_tensors_that_are_not_contiguous_are_handed_on(device):
    """A slice of a tensor lies between gaps, which do not travel."""

    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 16)

        def forward(self, x):
            return self.linear(x)[:, ::2]

    plan = pipert.compile(pipert.schedules.build("zb-h1", num_ranks=2, num_microbatches=2))
    torch.manual_seed(0)
    modules = {0: Sliced().to(device), 1: Sliced().to(device)}
    inputs, targets = torch.randn(6, 8, device=device), torch.randn(6, 8, device=device)
    with pipert.Engine(plan, modules, nn.functional.mse_loss) as engine:
        losses = engine.step(inputs, targets).losses
    expected = [
        nn.functional.mse_loss(modules[1](modules[0](x)), y)
        for x, y in zip(inputs.chunk(2), targets.chunk(2), strict=True)
    ]
    assert torch.equal(losses, torch.stack(expected).detach())
