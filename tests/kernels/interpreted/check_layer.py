"""The whole output layer on the GPU backend, against autograd through the unsplit layer in float64."""

import pytest
import torch
from score_cases import relative
from vocab_problems import OPTIONS, problem
from vocab_shards import run_plain, run_shards

from pipert.kernels import LossOptions, output_shard
from pipert.kernels.gpu.backend import GpuBackend


@pytest.fixture(autouse=True, params=["fused", "library"])
def kernels(request, monkeypatch):
    """The way that S goes."""
    backend = GpuBackend(request.param)
    monkeypatch.setattr(output_shard, "backend_for", lambda _: backend)
    return request.param


def both(options, num_shards, algorithm, bias, **sizes):
    x, w, b, targets, loss_grad = problem(**sizes)
    x, w, b = x.bfloat16(), w.bfloat16(), b.bfloat16() if bias else None
    targets = torch.where(targets == -100, options.ignore_index, targets)
    expected = run_plain(x, w, targets, loss_grad, options=options, bias_V=b)
    found = run_shards(
        x, w, targets, loss_grad.float(),
        options=options, num_shards=num_shards, algorithm=algorithm, bias_V=b, bound=1 << 20,
    )  # fmt: skip
    return found, expected


def check(found, expected):
    torch.testing.assert_close(found.lse_N.double(), expected.lse_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss_N.double(), expected.loss_N, atol=3e-5, rtol=1e-5)
    # The interpreter cuts bf16 off: twice the error of rounding, and all of one sign.
    assert relative(found.dx_ND, expected.dx_ND) < 6e-3
    assert relative(found.dw_VD, expected.dw_VD) < 8e-3
    if found.db_V is not None:
        assert relative(found.db_V, expected.db_V) < 6e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, kernels):
    algorithm = 1 if kernels == "fused" else 2
    check(*both(OPTIONS[name], 2, algorithm, bias=True, num_tokens=19, hidden=24, vocab=123))


@pytest.mark.parametrize(("num_tokens", "num_shards"), [(1, 5), (7, 1), (33, 5)])
def test_odd_sizes(num_tokens, num_shards):
    """Of 507 columns in 5 shards, some are padding; with one token the target is ignored."""
    check(*both(LossOptions(), num_shards, 2, bias=False, num_tokens=num_tokens, hidden=41, vocab=507))


def test_shards_of_nothing_but_padding():
    check(*both(LossOptions(z_loss=0.1), 4, 1, bias=False, num_tokens=9, hidden=16, vocab=5))


@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_huge_logits(soft_cap):
    found, expected = both(
        LossOptions(soft_cap=soft_cap), 3, 2, bias=False, num_tokens=11, hidden=16, vocab=70, scale=2e3
    )
    assert expected.lse_N.abs().max() > (29 if soft_cap else 5e3)
    torch.testing.assert_close(found.lse_N.double(), expected.lse_N, atol=0, rtol=1e-5)
    assert relative(found.dx_ND, expected.dx_ND) < 6e-3
    assert relative(found.dw_VD, expected.dw_VD) < 8e-3
