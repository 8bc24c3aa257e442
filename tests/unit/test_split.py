"""The split backward: the bits, the work and the memory of every kind of graph."""

import itertools
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO, make, needs_grad

from pipert.stages import Stage, boundaries, memory
from pipert.stages.graph import is_hooked_by_trial
from pipert.stages.split import WeightGrads


def forward_inputs(name, batch):
    return tuple(value.clone().requires_grad_(needs_grad(name, value)) for value in batch)


def output_grads(outputs, microbatch):
    generator = torch.Generator().manual_seed(microbatch)
    return tuple(torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs if y.requires_grad)


def by_autograd(name, order, drop=()):
    """Gradients by one plain ``torch.autograd.grad`` for each microbatch, summed in the given order."""
    module, batches = make(name)
    parameters = [p for p in module.parameters() if p.requires_grad]
    results = {}
    for microbatch, batch in enumerate(batches):
        torch.manual_seed(microbatch)
        inputs = forward_inputs(name, batch)
        outputs = module(*inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        wanted = [value for value in inputs if value.requires_grad]
        roots = [y for y in outputs if y.requires_grad]
        pairs = [
            pair for i, pair in enumerate(zip(roots, output_grads(outputs, microbatch), strict=True)) if i not in drop
        ]
        grads = (None,) * (len(wanted) + len(parameters))
        if pairs and grads:
            grads = torch.autograd.grad(
                [root for root, _ in pairs], wanted + parameters, [grad for _, grad in pairs], allow_unused=True
            )
        found = iter(grads)
        input_grads = [next(found) if value.requires_grad else None for value in inputs]
        results[microbatch] = ([y.detach() for y in outputs], input_grads, list(found))
    sums = [None] * len(parameters)
    for microbatch in order:
        for i, grad in enumerate(results[microbatch][2]):
            if grad is not None:
                sums[i] = grad.clone() if sums[i] is None else sums[i] + grad
    return results, sums


def by_stage(name, ops, drop=(), **options):
    """Outputs, input gradients, parameters' gradients and bytes held of a stage that ran ``ops`` ("F0", "I0", ...)."""
    module, batches = make(name)
    stage = Stage(module, **options)
    outputs, input_grads = {}, {}
    for op in ops:
        kind, microbatch = op[0], int(op[1:])
        if kind == "F":
            torch.manual_seed(microbatch)
            outputs[microbatch] = stage.forward(microbatch, forward_inputs(name, batches[microbatch]))
            assert all(y.grad_fn is None for y in outputs[microbatch])
        elif kind == "W":
            stage.weight_grad(microbatch)
        else:
            grads = output_grads(outputs[microbatch], microbatch)
            grads = tuple(None if i in drop else grad for i, grad in enumerate(grads))
            run = stage.backward if kind == "B" else stage.input_grad
            input_grads[microbatch] = run(microbatch, grads)
    return outputs, input_grads, [p.grad for p in module.parameters() if p.requires_grad], stage.activation_bytes


def assert_same(name, ops, drop=(), **options):
    order = [int(op[1:]) for op in ops if op[0] in "BW"]
    expected, sums = by_autograd(name, order, drop)
    outputs, input_grads, grads, num_bytes = by_stage(name, ops, drop, **options)
    assert num_bytes == 0
    for microbatch in order:
        assert_equal(outputs[microbatch], expected[microbatch][0], f"output of {microbatch}")
        assert_equal(input_grads[microbatch], expected[microbatch][1], f"input gradient of {microbatch}")
    assert_equal(grads, sums, "parameter gradient")


def assert_equal(got, expected, what):
    for i, (a, b) in enumerate(itertools.zip_longest(got, expected)):
        assert (a is None) == (b is None), f"{what} {i}: {a} instead of {b}"
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), f"{what} {i} differs by {(a - b).abs().max()}"


IN_PARTS = ["F0", "I0", "W0", "F1", "I1", "W1", "F2", "I2", "W2"]
INTERLEAVED = ["F0", "F1", "F2", "I1", "I0", "W0", "I2", "W2", "W1"]
MIXED = ["F0", "F1", "I0", "F2", "B1", "W0", "I2", "W2"]
WHOLE = ["F0", "F1", "B0", "F2", "B1", "B2"]


@pytest.mark.parametrize(
    "ops", [WHOLE, IN_PARTS, INTERLEAVED, MIXED], ids=["whole", "in-parts", "interleaved", "mixed"]
)
@pytest.mark.parametrize("name", ZOO)
def test_every_graph_has_the_bits_of_autograd(name, ops):
    assert_same(name, ops)


@pytest.mark.parametrize("name", ZOO)
def test_every_graph_has_the_bits_of_autograd_in_pieces(name, monkeypatch):
    monkeypatch.setattr(WeightGrads, "run", WeightGrads.run_in_pieces)
    assert_same(name, INTERLEAVED)


@pytest.mark.parametrize("name", ZOO)
def test_every_graph_has_the_bits_of_autograd_where_it_recomputes(name):
    if name != "batch-norm":  # runs twice, so its statistics differ
        assert_same(name, INTERLEAVED, recompute=True)


@pytest.mark.parametrize("drop", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", ["skip", "output-twice", "output-is-input", "output-is-view", "output-is-parameter"])
def test_outputs_that_the_consumer_did_not_use(name, drop):
    assert_same(name, IN_PARTS, drop)
    assert_same(name, WHOLE, drop)


@pytest.mark.parametrize("name", ["mlp", "checkpointed", "transformer-layer", "embedding"])
def test_torch_that_does_not_show_hooks_of_saved_tensors(name, monkeypatch):
    expected = work_of(name), by_stage(name, ["F0", "F1"])[-1]
    monkeypatch.setattr(boundaries, "is_hooked", is_hooked_by_trial)
    monkeypatch.setattr(memory, "is_hooked", is_hooked_by_trial)
    assert_same(name, INTERLEAVED)
    assert (work_of(name), by_stage(name, ["F0", "F1"])[-1]) == expected


class Ops(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def of(self, *names):
        return sum(self.counts[name] for name in names)


_WORK = (
    "mm", "addmm", "bmm", "baddbmm", "mv", "native_layer_norm_backward", "native_group_norm_backward",
    "native_batch_norm_backward", "embedding_dense_backward", "embedding_backward", "convolution_backward",
    "_scaled_dot_product_flash_attention_for_cpu_backward", "gelu_backward", "threshold_backward",
    "sum", "native_dropout_backward", "tanh_backward",
)  # fmt: skip


def work_of(name):
    """What runs in the one-op backward, in I, and in W."""
    counts = []
    for kinds in ("B", "IW"):
        module, batches = make(name, num_microbatches=1)
        stage = Stage(module)
        torch.manual_seed(0)
        outputs = stage.forward(0, forward_inputs(name, batches[0]))
        grads = output_grads(outputs, 0)
        for kind in kinds:
            with Ops() as ops:
                {"B": stage.backward, "I": stage.input_grad}[kind](0, grads) if kind != "W" else stage.weight_grad(0)
            counts.append(Counter({work: ops.counts[work] for work in _WORK if ops.counts[work]}))
    return counts


@pytest.mark.parametrize("name", [name for name in ZOO if name != "checkpointed"])
def test_nothing_is_computed_twice(name):
    whole, first, second = work_of(name)
    assert first + second == whole


@pytest.mark.parametrize(
    ("name", "in_first", "in_second"),
    [
        ("linear", {"mm": 1}, {"mm": 1, "sum": 1}),
        ("linear-3d", {"mm": 1}, {"mm": 1, "sum": 1}),
        ("linear-3d-no-bias", {"mm": 1}, {"mm": 1}),
        ("mlp", {"mm": 2, "gelu_backward": 1}, {"mm": 2, "sum": 2}),
        ("bmm", {"bmm": 2}, {"bmm": 2}),
        ("embedding", {"mm": 1}, {"mm": 1, "sum": 1, "embedding_dense_backward": 1}),
        ("tied", {"mm": 1, "native_layer_norm_backward": 1}, {"mm": 1, "embedding_dense_backward": 1}),
        ("layer-norm", {"native_layer_norm_backward": 1}, {}),
        ("data-linear", {"mm": 1, "threshold_backward": 1}, {"mm": 2, "sum": 2}),
        ("shared-four-times", {"mm": 4, "tanh_backward": 2}, {"mm": 4, "sum": 4}),
        ("masked-weight", {"mm": 1}, {"mm": 1}),
        ("autocast-shared", {"mm": 3, "threshold_backward": 1}, {"mm": 3, "sum": 3}),
    ],
)
def test_weight_gradients_are_left_to_the_second_part(name, in_first, in_second):
    assert work_of(name)[1:] == [in_first, in_second]


def test_attention_splits_all_four_projections():
    _, first, second = work_of("transformer-layer")
    assert second["mm"] == 4
    assert first["mm"] == 4
