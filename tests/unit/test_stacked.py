"""Weight gradients of several microbatches in one product: the sum by autograd but for rounding, and the work saved."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO, make, needs_grad

import pipert
from pipert import Program
from pipert.ir import Op
from pipert.stages import Stage

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
MICROBATCHES = range(3)


def same(tensors):
    return tensors


def output_grads(outputs, microbatch):
    generator = torch.Generator().manual_seed(microbatch)
    return tuple(torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs if y.requires_grad)


def assert_close(found, expected):
    """Apart by no more than 64 units in the last place of the largest gradient."""
    largest = max((grad.abs().max().item() for grad in expected.values() if grad is not None), default=0)
    for key, grad in expected.items():
        assert (found[key] is None) == (grad is None), key
        if grad is not None:
            assert found[key].shape == grad.shape
            assert (found[key] - grad).abs().max() <= 64 * torch.finfo(grad.dtype).eps * largest, key


def run(name, *, batched, **options):
    """The gradients after three microbatches, in the order F F F I I I W W W."""
    module, batches = make(name)
    stage = Stage(module, batch_weight_grads=True, **options)
    outputs = []
    for microbatch, batch in enumerate(batches):
        torch.manual_seed(microbatch)
        inputs = tuple(value.clone().requires_grad_(needs_grad(name, value)) for value in batch)
        outputs.append(stage.forward(microbatch, inputs))
    for microbatch in MICROBATCHES:
        stage.input_grad(microbatch, output_grads(outputs[microbatch], microbatch))
    for microbatch in MICROBATCHES:
        if batched and microbatch != MICROBATCHES[-1]:
            stage.put_off_weight_grad(microbatch, same)
            assert stage.activation_bytes > 0 or not any(p.requires_grad for p in module.parameters())
        else:
            stage.weight_grad(microbatch)
    assert stage.activation_bytes == 0
    return {
        name: p.grad if p.grad is not None else getattr(p, "main_grad", None) for name, p in module.named_parameters()
    }


@pytest.mark.parametrize("name", ZOO)
def test_the_difference_is_rounding(name):
    plain, batched = run(name, batched=False), run(name, batched=True)
    assert_close(batched, plain)


class ProductCounter(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__.split(".")[0] in PRODUCTS:
            self.counts[function.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "num_weights"), [("linear", 1), ("linear-3d-no-bias", 1), ("mlp", 2), ("attention", 2), ("matmul-left", 1)]
)
def test_one_product_per_weight(name, num_weights):
    module, batches = make(name)
    stage = Stage(module, batch_weight_grads=True)
    for microbatch, batch in enumerate(batches):
        (output,) = stage.forward(microbatch, tuple(value.requires_grad_() for value in batch))
        stage.input_grad(microbatch, (torch.ones_like(output),))
    with ProductCounter() as counter:
        stage.put_off_weight_grad(0, same)
        stage.put_off_weight_grad(1, same)
        assert counter.counts.total() == 0
        stage.weight_grad(2)
    assert counter.counts.total() == num_weights


def test_main_gradients():
    plain = run("mlp", batched=False, main_grad_dtype=torch.float64)
    batched = run("mlp", batched=True, main_grad_dtype=torch.float64)
    for key, expected in plain.items():
        assert batched[key].dtype == torch.float64
        torch.testing.assert_close(batched[key], expected, rtol=1e-5, atol=1e-5)


def test_a_weight_computed_anew_in_each_microbatch_is_not_stacked():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            return x @ (self.weight * (torch.arange(16).view(4, 4) < x.shape[0]))

    stage = Stage(Masked(), batch_weight_grads=True)
    for microbatch, rows in enumerate((1, 5)):
        (output,) = stage.forward(microbatch, (torch.ones(rows, 4, requires_grad=True),))
        stage.input_grad(microbatch, (torch.ones_like(output),))
    stage.put_off_weight_grad(0, same)
    stage.weight_grad(1)
    expected = torch.zeros(16)
    expected[:5] = 5
    expected[:1] += 1
    assert torch.equal(stage.module.weight.grad.flatten(), expected)


def test_what_is_put_off_may_lose_its_memory():
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    stage = Stage(module, batch_weight_grads=True)
    slot = torch.empty(2, 4)
    expected = torch.zeros(3, 4)
    for microbatch in range(2):
        slot.copy_(torch.randn(2, 4))  # as the next message into the same slot
        x = slot.detach().requires_grad_()
        (output,) = stage.forward(microbatch, (x,))
        grad = torch.randn_like(output)
        stage.input_grad(microbatch, (grad,))
        expected += grad.t() @ slot
        if microbatch == 0:
            stage.put_off_weight_grad(0, lambda tensors: tuple(None if t is None else t.clone() for t in tensors))
    stage.weight_grad(1)
    torch.testing.assert_close(module.weight.grad, expected)


def two_ranks():
    """Rank 1 takes new messages, in slots that it has just freed, between two runs of W ops."""
    rows = [
        "0F0 0F1 0F2 0F3 0I0 0I1 0I2 0I3 0W0 0W1 0W2 0W3",
        "1F0 1F1 1I0 1I1 1W0 1W1 1F2 1F3 1I2 1I3 1W2 1W3",
    ]
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return pipert.compile(Program.single_path("two runs", (0, 1), 4, ranks), recv_depth=1)


@pytest.mark.parametrize(
    "plan", [two_ranks(), pipert.compile(pipert.schedules.build("zb-h1", num_ranks=3, num_microbatches=6))]
)
def test_an_engine_batches_ops_that_follow_each_other(plan, monkeypatch):
    torch.manual_seed(5)
    modules = {stage: nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for stage in range(plan.num_stages)}
    plain = copy.deepcopy(modules)
    batch = (
        [torch.randn(3, 16) for _ in range(plan.num_microbatches)],
        [torch.randn(3, 16) for _ in range(plan.num_microbatches)],
    )

    def loss_fn(output, target):
        return (output - target).square().mean()

    sizes = []
    put_off = Stage.put_off_weight_grad
    monkeypatch.setattr(Stage, "put_off_weight_grad", lambda *args: (sizes.append(args[1]), put_off(*args))[1])
    stages = {stage: Stage(module, batch_weight_grads=True) for stage, module in modules.items()}
    with pipert.Engine(plan, stages, loss_fn) as engine, pipert.Engine(plan, plain, loss_fn) as exact:
        for _ in range(3):
            result, expected = engine.step(*batch), exact.step(*batch)
    assert len(sizes) >= 6
    assert torch.equal(result.losses, expected.losses)
    for stage, module in modules.items():
        assert_close(
            {name: p.grad for name, p in module.named_parameters()},
            {name: p.grad for name, p in plain[stage].named_parameters()},
        )
