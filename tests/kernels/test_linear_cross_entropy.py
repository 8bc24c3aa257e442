"""The function and the module in one process, against torch's own cross entropy and by autograd's own checks."""

import pytest
import torch
import torch.nn.functional as F
from vocab_problems import OPTIONS, problem
from vocab_shards import plain_losses, split

from pipert.kernels import (
    LossOptions,
    VocabParallelLinearCrossEntropy,
    VocabShard,
    vocab_parallel_linear_cross_entropy,
)

SHARD = VocabShard(37)
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
BOUNDS = pytest.mark.parametrize("bound", [None, 2500])


def leaves(dtype=torch.float64):
    x, w, bias, targets, _ = problem(dtype=dtype)
    return [t.requires_grad_() for t in (x, split(w, SHARD), split(bias, SHARD))], targets


def gradients(loss, tensors):
    """Pull back a gradient that is not 1, which a mistake would hide."""
    generator = torch.Generator().manual_seed(9)
    return torch.autograd.grad(loss, tensors, torch.randn(loss.shape, generator=generator, dtype=loss.dtype))


@BOUNDS
@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_same_as_torch(reduction, smoothing, with_bias, bound):
    tensors, targets = leaves()
    tensors = tensors if with_bias else tensors[:2]
    x, w, *bias = tensors
    found = vocab_parallel_linear_cross_entropy(
        x,
        w,
        targets,
        shard=SHARD,
        bias=bias[0] if bias else None,
        options=LossOptions(label_smoothing=smoothing),
        reduction=reduction,
        max_workspace_bytes=bound,
    )
    logits = F.linear(x, w[:37], bias[0][:37] if bias else None)
    expected = F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    for a, b in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@BOUNDS
@REDUCTIONS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_token_weights_and_every_option(options, reduction, bound):
    tensors, targets = leaves()
    targets[targets == -100] = options.ignore_index
    weights = torch.rand(13, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    x, w, bias = tensors
    found = vocab_parallel_linear_cross_entropy(
        *(x, w, targets),
        shard=SHARD,
        bias=bias,
        token_weights=weights,
        options=options,
        reduction=reduction,
        max_workspace_bytes=bound,
    )
    expected = plain_losses(x, w[:37], targets, options, bias[:37]) * weights
    if reduction == "sum":
        expected = expected.sum()
    if reduction == "mean":
        expected = expected.sum() / weights[targets != options.ignore_index].sum()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    tensors.append(weights)
    for a, b in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@BOUNDS
@REDUCTIONS
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_gradcheck(reduction, soft_cap, bound):
    x, w, bias, targets, _ = problem(num_tokens=4, hidden=3, vocab=8)
    options = LossOptions(z_loss=0.1, soft_cap=soft_cap)

    def function(x, w, bias, weights):
        return vocab_parallel_linear_cross_entropy(
            *(x, w, targets),
            shard=VocabShard(8),
            bias=bias,
            token_weights=weights,
            options=options,
            reduction=reduction,
            max_workspace_bytes=bound and 200,
        )

    tensors = (x, w, bias, torch.rand(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors], atol=1e-7, rtol=1e-7)


@BOUNDS
@REDUCTIONS
def test_nothing_to_learn_from_is_what_torch_makes_of_it(reduction, bound):
    for num_tokens in (0, 13):
        (x, w, _), targets = leaves()
        x, targets = x[:num_tokens], torch.full((num_tokens,), -100)
        found = vocab_parallel_linear_cross_entropy(
            x, w, targets, shard=SHARD, reduction=reduction, max_workspace_bytes=bound
        )
        expected = F.cross_entropy(x @ w[:37].T, targets, reduction=reduction)
        torch.testing.assert_close(found, expected, equal_nan=True)
        assert found.isnan().all() == (reduction == "mean") or num_tokens == 0
        for grad in gradients(found, (x, w)):
            assert not grad.any()


@BOUNDS
@REDUCTIONS
def test_main_grad_takes_the_gradients(reduction, bound):
    layer = VocabParallelLinearCrossEntropy(
        7, 37, bias=True, reduction=reduction, max_workspace_bytes=bound, dtype=torch.bfloat16
    )
    x, _, _, targets, _ = problem(dtype=torch.bfloat16)
    wanted = []
    for scale in (1.0, 2.0):
        (layer(x, targets).sum() * scale).backward()
        wanted += [[parameter.grad.float() for parameter in layer.parameters()]]
        layer.zero_grad()
    for parameter in layer.parameters():
        parameter.main_grad = torch.full(parameter.shape, 0.25)
    for scale in (1.0, 2.0):
        (layer(x, targets).sum() * scale).backward()
    for index, parameter in enumerate(layer.parameters()):
        assert parameter.grad is None
        expected = 0.25 + wanted[0][index] + wanted[1][index]
        torch.testing.assert_close(parameter.main_grad, expected, rtol=1e-2, atol=1e-2)
        assert (parameter.main_grad[37:] == 0.25).all()
    assert not torch.equal(layer.weight.main_grad, layer.weight.main_grad.bfloat16().float())


@BOUNDS
def test_only_the_gradients_that_are_wanted(bound):
    (x, w, bias), targets = leaves()
    for wanted in range(1, 8):
        flags = [bool(wanted >> bit & 1) for bit in range(3)]
        tensors = [t.detach().requires_grad_(flag) for t, flag in zip((x, w, bias), flags, strict=True)]
        expected = F.cross_entropy(F.linear(x, w[:37], bias[:37]), targets)
        loss = vocab_parallel_linear_cross_entropy(
            tensors[0], tensors[1], targets, shard=SHARD, bias=tensors[2], max_workspace_bytes=bound
        )
        loss.backward()
        for t, leaf in zip(tensors, (x, w, bias), strict=True):
            assert (t.grad is not None) == t.requires_grad
            if t.requires_grad:
                torch.testing.assert_close(t.grad, torch.autograd.grad(expected, leaf, retain_graph=True)[0])


def test_without_gradients_nothing_is_kept(monkeypatch):
    (x, w, _), targets = leaves()
    expected = vocab_parallel_linear_cross_entropy(x, w, targets, shard=SHARD)
    monkeypatch.setattr("pipert.kernels.OutputShard.score", None)
    with torch.no_grad():
        assert torch.equal(vocab_parallel_linear_cross_entropy(x, w, targets, shard=SHARD), expected)
    found = vocab_parallel_linear_cross_entropy(x.detach(), w.detach(), targets, shard=SHARD)
    assert not found.requires_grad


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_bound_keeps_nothing_as_large_as_the_logits(reduction):
    (x, w, _), targets = leaves()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        vocab_parallel_linear_cross_entropy(x, w, targets, shard=SHARD, reduction=reduction, max_workspace_bytes=2500)
    assert 0 < max(saved) <= w.numel() < 13 * 38


def test_leading_sizes_and_strides():
    x, _, _, targets, _ = problem(num_tokens=24)
    layer = VocabParallelLinearCrossEntropy(7, 37, reduction="none", dtype=torch.float64)
    expected = layer(x, targets)
    cube, square = x.view(2, 3, 4, 7), targets.view(2, 3, 4)
    assert torch.equal(layer(cube, square), expected.view(2, 3, 4))
    turned = layer(cube.transpose(0, 2), square.transpose(0, 2).to(torch.int32))
    torch.testing.assert_close(turned, expected.view(2, 3, 4).transpose(0, 2))
    assert layer(x[0], targets[0]).shape == ()


def test_backward_twice_and_not_doubly():
    for bound in (None, 2500):
        (x, w, _), targets = leaves()
        loss = vocab_parallel_linear_cross_entropy(x, w, targets, shard=SHARD, max_workspace_bytes=bound)
        first, again = (torch.autograd.grad(loss, (x, w), retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        (dx,) = torch.autograd.grad(loss, x, torch.ones((), dtype=torch.float64, requires_grad=True), create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            dx.sum().backward()


def test_autocast_changes_nothing():
    layer = VocabParallelLinearCrossEntropy(7, 37, bias=True, options=LossOptions(label_smoothing=0.1))
    x, _, _, targets, _ = problem(dtype=torch.float32)
    for reduction in ("none", "mean"):
        layer.reduction = reduction
        expected = layer(x, targets)
        grads = gradients(expected, list(layer.parameters()))
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x, targets)
            assert torch.equal(found, expected)
            again = gradients(found, list(layer.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_the_module_takes_an_unsplit_layer_and_starts_as_nn_linear():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 37)
    layer = VocabParallelLinearCrossEntropy(64, 37, bias=True)
    for mine, other in ((layer.weight, linear.weight), (layer.bias, linear.bias)):
        assert not mine[37:].any()
        assert 0.9 * 0.125 < mine.max() <= 0.125
        assert -0.125 <= mine.min() < -0.9 * 0.125
        assert not torch.equal(mine[:37], other)
    layer.load_full(linear.weight, linear.bias)
    x, targets = torch.randn(5, 64), torch.randint(0, 37, (5,))
    torch.testing.assert_close(layer(x, targets), F.cross_entropy(linear(x), targets))
    assert "vocab_size=37" in repr(layer)
