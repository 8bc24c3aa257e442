"""Modules with graphs of every shape, each with the inputs it takes."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


def x(*shape, dtype=torch.float32):
    """A random input that needs a gradient (as float tensors on an edge do)."""
    return functools.partial(torch.randn, *shape, dtype=dtype)


def ids(*shape, high=11):
    """Random indices."""
    return functools.partial(torch.randint, high, shape)


class Fn(nn.Module):
    """A module out of submodules and a function of (module, *inputs)."""

    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Scale(torch.autograd.Function):
    """``x * weight`` by hand."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0)


class Round(torch.autograd.Function):
    """Round a weight, straight through."""

    @staticmethod
    def forward(ctx, weight):
        return (weight * 8).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad


def param(*shape):
    return nn.Parameter(torch.randn(*shape))


def frozen(module, *names):
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


def scaled_hook(grad):
    return grad * 3


def with_hooked_output(m, a):
    y = m.a(a)
    y.register_hook(scaled_hook)
    return m.b(y)


def in_place_view(m, a):
    y = m.a(a)
    y.mul_(2)
    y[:, :3].relu_()
    return m.b(y)


def attention(m, a):
    q, k, v = m.qkv(a).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 8))


def ordered_weight_uses(m, a):
    first, second = m.w.t(), m.w.t()
    return (a @ second).relu() @ first + a @ m.w


def tied_three_ways(m, i):
    h = F.embedding(i, m.w)
    return F.linear(F.linear(h, m.w).tanh() @ m.w, m.w) + F.linear(h.sin(), m.w)


def skipped_twice(m, a):
    h = m.a(a)
    return m.b(h) + h * 2 + a, h


def autocast(module):
    def run(m, *inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return m.inner(*inputs)

    return Fn(run, inner=module)


def dropped_out():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.1))


ZOO = {
    "linear": (lambda: nn.Linear(8, 5), [x(6, 8)]),
    "linear-no-bias": (lambda: nn.Linear(8, 5, bias=False), [x(6, 8)]),
    "linear-1d": (lambda: nn.Linear(8, 5), [x(8)]),
    "linear-3d": (lambda: nn.Linear(8, 5), [x(2, 3, 8)]),
    "linear-3d-no-bias": (lambda: nn.Linear(8, 5, bias=False), [x(2, 3, 8)]),
    "linear-4d": (lambda: nn.Linear(8, 5), [x(2, 2, 3, 8)]),
    "linear-transposed-input": (lambda: Fn(lambda m, a: m.a(a.t()), a=nn.Linear(6, 5)), [x(6, 8)]),
    "linear-bf16": (lambda: nn.Linear(8, 5).bfloat16(), [x(6, 8, dtype=torch.bfloat16)]),
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), [x(6, 8)]),
    "matmul-left": (lambda: Fn(lambda m, a: m.w @ a, w=param(5, 6)), [x(6, 8)]),
    "matmul-right": (lambda: Fn(lambda m, a: a @ m.w, w=param(8, 5)), [x(6, 8)]),
    "matmul-vector": (lambda: Fn(lambda m, a: a @ m.w, w=param(8)), [x(6, 8)]),
    "addmm-scaled": (
        lambda: Fn(lambda m, a: torch.addmm(m.b, a, m.w, beta=2, alpha=0.5), w=param(8, 5), b=param(5)),
        [x(6, 8)],
    ),
    "bmm": (
        lambda: Fn(lambda m, a: torch.bmm(torch.bmm(m.v, a), m.w), v=param(3, 4, 6), w=param(3, 8, 5)),
        [x(3, 6, 8)],
    ),
    "complex": (
        lambda: Fn(
            lambda m, a: torch.view_as_real(torch.view_as_complex(a.view(6, 4, 2)) @ m.w),
            w=nn.Parameter(torch.randn(4, 5, dtype=torch.complex64)),
        ),
        [x(6, 8)],
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 5)), [ids(2, 7)]),
    "embedding-padding": (lambda: nn.Sequential(nn.Embedding(11, 8, padding_idx=3), nn.Linear(8, 5)), [ids(2, 7)]),
    "embedding-by-frequency": (lambda: nn.Embedding(11, 8, scale_grad_by_freq=True), [ids(2, 7)]),
    "embedding-and-positions": (
        lambda: Fn(lambda m, i: m.b(m.a(i) + m.p), a=nn.Embedding(11, 8), p=param(7, 8), b=nn.LayerNorm(8)),
        [ids(2, 7)],
    ),
    "layer-norm": (lambda: nn.LayerNorm(8), [x(6, 8)]),
    "layer-norm-plain": (lambda: nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)), [x(6, 8)]),
    "rms-norm": (lambda: nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8)), [x(6, 8)]),
    "group-norm": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv1d(8, 4, 3)), [x(2, 8, 5)]),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)), [x(6, 8)]),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, groups=2)),
        [x(2, 2, 6, 6)],
    ),
    "conv-transpose": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2), [x(2, 2, 6)]),
    "attention": (lambda: Fn(attention, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8, bias=False)), [x(2, 5, 8)]),
    "multihead": (
        lambda: Fn(lambda m, a: m.a(a, a, a)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
        [x(2, 5, 8)],
    ),
    "multihead-cross": (
        lambda: Fn(lambda m, a, b: m.a(a, b, b, need_weights=False)[0], a=nn.MultiheadAttention(8, 2)),
        [x(2, 5, 8), x(3, 5, 8)],
    ),
    "transformer-layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True), [x(2, 5, 8)]),
    "lstm": (lambda: Fn(lambda m, a: m.a(a)[0], a=nn.LSTM(8, 8)), [x(3, 2, 8)]),
    "skip": (lambda: Fn(skipped_twice, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), [x(6, 8)]),
    "two-inputs": (
        lambda: Fn(lambda m, a, b: m.a(a) * m.b(b), a=nn.Linear(8, 8), b=nn.Linear(4, 8)),
        [x(6, 8), x(6, 4)],
    ),
    "input-unused": (lambda: Fn(lambda m, a, b: m.a(a), a=nn.Linear(8, 8)), [x(6, 8), x(6, 4)]),
    "inputs-and-mask": (
        lambda: Fn(lambda m, a, i: (m.a(a).masked_fill(i > 5, 0.0), i), a=nn.Linear(8, 8)),
        [x(6, 8), ids(6, 8)],
    ),
    "output-detached": (
        lambda: Fn(lambda m, a: (m.a(a), m.a(a).detach(), a.sum().long()), a=nn.Linear(8, 8)),
        [x(6, 8)],
    ),
    "output-twice": (lambda: Fn(lambda m, a: (h := m.a(a), h), a=nn.Linear(8, 8)), [x(6, 8)]),
    "output-is-input": (lambda: Fn(lambda m, a: (a, m.a(a)), a=nn.Linear(8, 8)), [x(6, 8)]),
    "output-is-parameter": (lambda: Fn(lambda m, a: (m.a(a), m.p, m.p * 2), a=nn.Linear(8, 8), p=param(3)), [x(6, 8)]),
    "output-is-view": (lambda: Fn(lambda m, a: m.a(a).chunk(2, -1), a=nn.Linear(8, 8)), [x(6, 8)]),
    "no-parameters": (nn.GELU, [x(6, 8)]),
    "identity": (nn.Identity, [x(6, 8)]),
    "scale-and-shift": (
        lambda: Fn(lambda m, a: m.l(a * m.s + m.b), s=param(8), b=param(1), l=nn.Linear(8, 8)),
        [x(6, 8)],
    ),
    "aliased-gradients": (
        lambda: Fn(lambda m, a: a + m.p.view(6, 8) + m.q.view(6, 8), p=param(48), q=param(48)),
        [x(6, 8)],
    ),
    "masked-weight": (
        lambda: Fn(
            lambda m, a: F.linear(a, m.w * m.mask * 0.5), w=param(8, 8), mask=nn.Buffer(torch.ones(8, 8).tril())
        ),
        [x(6, 8)],
    ),
    "weight-norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), [x(6, 8)]),
    "low-rank-weight": (
        lambda: Fn(lambda m, a: F.linear(a, m.w + m.u @ m.v), w=param(8, 8), u=param(8, 2), v=param(2, 8)),
        [x(6, 8)],
    ),
    "rounded-weight": (
        lambda: Fn(lambda m, a: F.linear(a, Round.apply(m.w), Round.apply(m.b)), w=param(8, 8), b=param(8)),
        [x(6, 8)],
    ),
    "frozen-weight": (lambda: frozen(nn.Linear(8, 8), "weight"), [x(6, 8)]),
    "frozen-bias": (lambda: frozen(nn.Linear(8, 8), "bias"), [x(6, 8)]),
    "frozen-middle": (
        lambda: frozen(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), "1.weight", "1.bias"),
        [x(6, 8)],
    ),
    "frozen": (lambda: frozen(nn.Linear(8, 8), "weight", "bias"), [x(6, 8)]),
    "shared-twice": (lambda: Fn(lambda m, a: m.a(m.a(a).relu()), a=nn.Linear(8, 8)), [x(6, 8)]),
    "shared-four-times": (
        lambda: Fn(lambda m, a: m.a(m.a(m.a(m.a(a).tanh()).tanh()) + a), a=nn.Linear(8, 8)),
        [x(6, 8)],
    ),
    "shared-bias": (
        lambda: Fn(
            lambda m, a: F.linear(F.linear(F.linear(a, m.u, m.b).sin(), m.v, m.b).sin(), m.u, m.b),
            u=param(8, 8),
            v=param(8, 8),
            b=param(8),
        ),
        [x(6, 8)],
    ),
    "shared-transposes": (lambda: Fn(ordered_weight_uses, w=param(8, 8)), [x(6, 8)]),
    "shared-transpose-node": (
        lambda: Fn(lambda m, a: ((a @ (w := m.w.t())).sin() @ w).sin() @ w + a @ m.w, w=param(8, 8)),
        [x(6, 8)],
    ),
    "shared-with-scale": (
        lambda: Fn(lambda m, a: F.linear(a * m.w, torch.outer(m.w, m.w), m.w), w=param(8)),
        [x(6, 8)],
    ),
    "shared-with-norm": (
        lambda: Fn(lambda m, a: F.layer_norm(m.a(a), (8,), m.a.bias, m.n), a=nn.Linear(8, 8), n=param(8)),
        [x(6, 8)],
    ),
    "tied": (
        lambda: Fn(lambda m, i: F.linear(m.n(m.e(i)), m.e.weight), e=nn.Embedding(11, 8), n=nn.LayerNorm(8)),
        [ids(2, 7)],
    ),
    "tied-three-ways": (lambda: Fn(tied_three_ways, w=param(8, 8)), [ids(2, 7, high=8)]),
    "dropout": (dropped_out, [x(6, 8)]),
    "checkpointed": (
        lambda: Fn(lambda m, a: m.b(checkpoint(m.a, m.b(a), use_reentrant=False)), a=dropped_out(), b=nn.Linear(8, 8)),
        [x(6, 8)],
    ),
    "autocast": (
        lambda: autocast(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))),
        [x(6, 8)],
    ),
    "autocast-shared": (lambda: autocast(Fn(lambda m, a: m.a(m.a(m.a(a).relu()).sin()), a=nn.Linear(8, 8))), [x(6, 8)]),
    "custom-function": (lambda: Fn(lambda m, a: m.l(Scale.apply(a, m.s)), s=param(8), l=nn.Linear(8, 8)), [x(6, 8)]),
    "custom-function-is-output": (
        lambda: Fn(lambda m, a: Scale.apply(m.l(a), m.s), s=param(8), l=nn.Linear(8, 8)),
        [x(6, 8)],
    ),
    "in-place": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)), [x(6, 8)]),
    "in-place-view": (lambda: Fn(in_place_view, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), [x(6, 8)]),
    "hooked-output": (lambda: Fn(with_hooked_output, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), [x(6, 8)]),
    "data-conv": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)), [ids(3, 2, 6)]),
    "data-linear": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), [ids(3, 8)]),
    "data-norm": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), [ids(3, 8)]),
    "data-scale": (lambda: Fn(lambda m, i: m.l(i * m.s), s=param(8), l=nn.Linear(8, 4)), [ids(3, 8)]),
    "data-custom": (lambda: Fn(lambda m, i: m.l(Scale.apply(i, m.s)), s=param(8), l=nn.Linear(8, 4)), [ids(3, 8)]),
}
"""name: (module factory, [input factories]). Inputs of a ``data-`` entry stand for floats that need no gradient."""


def make(name, num_microbatches=3):
    """A module and the inputs of some microbatches: the same at every call."""
    torch.manual_seed(0)
    factory, input_factories = ZOO[name]
    module = factory()
    batches = [tuple(make_input() for make_input in input_factories) for _ in range(num_microbatches)]
    if name.startswith("data-"):
        batches = [tuple(value.float() for value in batch) for batch in batches]
    return module, batches


def needs_grad(name, value):
    return value.is_floating_point() and not name.startswith("data-")
