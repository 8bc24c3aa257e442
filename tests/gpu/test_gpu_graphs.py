"""Steps that are captured once and then launched, whole or op by op: they compute what eager steps compute."""

import pytest
import torch
from pipelines import assert_same_bits, gradients, pipeline
from processes import assert_done, run_ranks
from torch import nn

import pipert
from pipert.errors import ConfigError, PipertError

pytestmark = [pytest.mark.gpu, pytest.mark.kernels]

MODES = [True, "op"]
NUM_EAGER = 2  # steps before one is captured
NUM_STEPS = 6


def batches(pipe, step):
    """Other data in each step, of the same shapes."""
    torch.manual_seed(100 + step)
    inputs = [
        torch.randn_like(x) if x.is_floating_point() else torch.randint_like(x, int(x.max()) + 1) for x in pipe.inputs
    ]
    return inputs, [torch.randn_like(y) for y in pipe.targets]


def run(pipe, mode, **options):
    """Return what every step left: losses and gradients, which are then dropped."""
    modules = pipe.copies()
    found = []
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, tied=pipe.tied, seed=1, cuda_graph=mode, **options) as engine:
        for step in range(NUM_STEPS):
            result = engine.step(*batches(pipe, step))
            kept = {key: None if grad is None else grad.clone() for key, grad in gradients(modules).items()}
            found.append({"loss": result.loss.clone(), "losses": result.losses.clone()} | kept)
            drop(modules)
    return found


def drop(modules):
    for module in modules.values():
        module.zero_grad(set_to_none=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["skip", "multi-output", "tied"])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "dualpipe"])
def test_losses_and_gradients_are_those_of_eager_steps(device, schedule, case, mode):
    pipe = pipeline(case, schedule, 4, device=device)
    for captured, eager in zip(run(pipe, mode), run(pipe, False), strict=True):
        assert_same_bits(captured, eager)


@pytest.mark.parametrize("mode", MODES)
def test_with_an_optimizer_and_an_evaluation_between(device, mode):
    pipe = pipeline("skip", "zb-v", 4, device=device)
    trained = []
    for each in (mode, False):
        modules = pipe.copies()
        optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.01)
        found = {}
        with pipert.Engine(
            pipe.plan, modules, pipe.loss_fn, optimizer=optimizer, clip_norm=0.05, cuda_graph=each
        ) as engine:
            for step in range(NUM_STEPS):
                result = engine.step(*batches(pipe, step))
                found[step] = torch.stack([*result.losses, result.grad_norm])
                found[-1 - step] = engine.eval_step(*batches(pipe, step)).losses.clone()
        trained.append(found | {(*key, name): p for key in modules for name, p in modules[key].named_parameters()})
    assert_same_bits(*trained)


@pytest.mark.parametrize("mode", MODES)
def test_over_ipc(mode):
    assert_done(run_ranks(2, "../gpu/rank_graphs.py", mode), 2)


def test_dropout_in_a_whole_step_is_drawn_anew_in_each_step(device):
    pipe = pipeline("dropout", "1f1b", 2, device=device)
    once, again = run(pipe, True), run(pipe, True)
    for one, other in zip(once, again, strict=True):
        assert_same_bits(one, other)
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, cuda_graph=True) as engine:
        losses = []
        for _ in range(NUM_STEPS):
            losses.append(engine.step(pipe.inputs, pipe.targets).loss.item())
            drop(modules)
    assert len(set(losses)) == NUM_STEPS


def test_dropout_op_by_op_is_refused_by_name(device):
    pipe = pipeline("dropout", "1f1b", 2, device=device)
    with pytest.raises(ConfigError, match=r"0F0 draws random numbers on the device") as caught:
        run(pipe, "op")
    assert caught.value.op == "0F0"


class Synchronising(nn.Module):
    """Looks at a number of its own on the host."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        assert inputs[0].sum().item() == inputs[0].sum().item()
        return self.module(*inputs)


@pytest.mark.parametrize("mode", MODES)
def test_a_stage_that_waits_for_the_device_is_refused_by_name(device, mode):
    pipe = pipeline("skip", "1f1b", 2, device=device)
    modules = pipe.copies()
    modules[1, 1] = Synchronising(modules[1, 1])
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, cuda_graph=mode) as engine:
        for step in range(NUM_EAGER):
            engine.step(*batches(pipe, step))
            drop(modules)
        with pytest.raises(PipertError, match="cannot be captured") as caught:
            engine.step(*batches(pipe, NUM_EAGER))
    assert caught.value.op == "1F0"
    assert "1F0" in str(caught.value)
    for captured, eager in zip(run(pipe, mode), run(pipe, False), strict=True):
        assert_same_bits(captured, eager)


@pytest.mark.parametrize("mode", MODES)
def test_other_shapes_than_the_captured_ones_are_refused(device, mode):
    pipe = pipeline("skip", "1f1b", 2, device=device)
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, cuda_graph=mode) as engine:
        for step in range(NUM_STEPS):
            engine.step(*batches(pipe, step))
            drop(modules)
        inputs, targets = batches(pipe, 0)
        with pytest.raises(ConfigError, match="shapes"):
            engine.step([x.repeat(2, 1) for x in inputs], [y.repeat(2, 1) for y in targets])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_that_would_be_overwritten_are_refused(device, mode):
    pipe = pipeline("skip", "1f1b", 2, device=device)
    with pipert.Engine(pipe.plan, pipe.copies(), pipe.loss_fn, cuda_graph=mode) as engine:
        with pytest.raises(ConfigError, match="accumulate"):
            engine.step(*batches(pipe, 0), accumulate=True)
        engine.step(*batches(pipe, 0))
        with pytest.raises(ConfigError, match="still has the gradient of the step before"):
            engine.step(*batches(pipe, 1))


@pytest.mark.parametrize("mode", MODES)
def test_the_trace_of_a_launched_step_has_every_op(device, mode):
    pipe = pipeline("skip", "zb-v", 2, device=device)
    modules = pipe.copies()
    with pipert.Engine(pipe.plan, modules, pipe.loss_fn, cuda_graph=mode) as engine:
        for step in range(NUM_STEPS):
            trace = engine.step(*batches(pipe, step)).trace
            drop(modules)
    assert list(trace.recorded()) == list(range(pipe.plan.num_ops))
    assert all(end >= start for start, end in zip(trace.start, trace.end, strict=True))
