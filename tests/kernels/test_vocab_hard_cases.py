"""Inputs that break a careless cross entropy: only ignored rows, only padding, enormous logits, odd sizes."""

import pytest
import torch
from vocab_problems import OPTIONS, assert_close, problem
from vocab_shards import run_plain, run_shards

from pipert.kernels import LossOptions, OutputShard, VocabShard

BOTH = pytest.mark.parametrize("algorithm", [1, 2])


@BOTH
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_all_rows_ignored(options, algorithm):
    x, w, bias, targets, loss_grad = problem()
    targets[:] = options.ignore_index
    found = run_shards(x, w, targets, loss_grad, options=options, num_shards=2, algorithm=algorithm, bias_V=bias)
    for name in ("loss_N", "dx_ND", "dw_VD", "db_V"):
        assert not getattr(found, name).any(), name


@BOTH
def test_a_shard_of_padding_only(algorithm):
    shard = VocabShard(3, 4, 3)
    assert shard.num_real == 0
    x, w, bias, targets, loss_grad = problem(vocab=3)
    layer = OutputShard(torch.full((2, 7), 7.0, dtype=torch.float64), shard)
    assert (layer.score(x, targets).statistics.reference_N == -torch.inf).all()
    for options in (LossOptions(), LossOptions(label_smoothing=0.1, z_loss=0.1), LossOptions(soft_cap=2.0)):
        found = run_shards(x, w, targets, loss_grad, options=options, num_shards=4, algorithm=algorithm, bias_V=bias)
        assert_close(found, run_plain(x, w, targets, loss_grad, options=options, bias_V=bias), 1e-12)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_logits_of_ten_thousand(dtype, num_shards, algorithm):
    """Logits of up to ±1e4, exact in every dtype; some targets win by thousands, some lose."""
    generator = torch.Generator().manual_seed(0)
    hidden, vocab = 16, 37
    w = torch.randint(-4, 5, (vocab, hidden), generator=generator).to(dtype)
    x = (torch.randint(-6, 7, (11, hidden), generator=generator) * 96).to(dtype)
    x[0] = 0
    logits = x.double() @ w.double().T
    assert logits.max() > 9e3
    assert logits.min() < -9e3
    targets = torch.randint(0, vocab, (11,), generator=generator)
    targets[3], targets[4], targets[5] = logits[3].argmax(), -100, logits[5].argmin()
    loss_grad = torch.randn(11, generator=generator, dtype=torch.float64)
    expected = run_plain(x, w, targets, loss_grad)
    found = run_shards(x, w, targets, loss_grad, num_shards=num_shards, algorithm=algorithm)
    assert_close(found, expected, {torch.float64: 1e-9, torch.float32: 3e-3, torch.bfloat16: 3e-1}[dtype])
    assert expected.loss_N.max() > 9e3


def test_an_ignored_token_beside_very_negative_logits_has_no_gradient():
    w = torch.ones(4, 2)
    x = torch.full((3, 2), -5000.0)
    targets = torch.tensor([-100, 1, -100])
    found = run_shards(x, w, targets, torch.ones(3), num_shards=2)
    assert_close(found, run_plain(x, w, targets, torch.ones(3)), 1e-3)


@BOTH
@pytest.mark.parametrize(("num_tokens", "vocab", "num_shards"), [(1, 1, 1), (1, 37, 3), (0, 37, 2), (123, 507, 3)])
def test_odd_sizes_one_token_and_none(num_tokens, vocab, num_shards, algorithm):
    x, w, bias, targets, loss_grad = problem(num_tokens, 5, vocab)
    targets[:1] = 0
    for bound in (None, 700):
        found = run_shards(
            x, w, targets, loss_grad, num_shards=num_shards, algorithm=algorithm, bias_V=bias, bound=bound
        )
        assert_close(found, run_plain(x, w, targets, loss_grad, bias_V=bias), 1e-12)


def test_a_bias_of_minus_infinity_masks_columns():
    """Whole shards may be masked, and single columns."""
    x, w, bias, targets, loss_grad = problem()
    bias[:14], bias[20] = -torch.inf, -torch.inf
    targets = 21 + targets.clamp(min=0) % 16
    found = run_shards(x, w, targets, loss_grad, num_shards=3, bias_V=bias)
    left = [i for i in range(37) if i >= 14 and i != 20]
    expected = run_plain(x, w[left], targets - 15, loss_grad, bias_V=bias[left])
    torch.testing.assert_close(found.loss_N, expected.loss_N)
    torch.testing.assert_close(found.dw_VD[left], expected.dw_VD)
    torch.testing.assert_close(found.dx_ND, expected.dx_ND)
    assert not found.dw_VD[:14].any()


def test_not_contiguous_inputs():
    x, w, _, targets, loss_grad = problem()
    expected = run_shards(x, w, targets, loss_grad, num_shards=2)
    wide = torch.stack([x, x], 2).transpose(0, 1)[..., 0].T
    assert not wide.is_contiguous()
    doubled = targets.repeat_interleave(2)[::2]
    found = run_shards(wide, w, doubled, loss_grad, num_shards=2)
    assert torch.equal(found.dw_VD, expected.dw_VD)
    shard = VocabShard(37)
    padded = torch.cat([w, w[:1]]).T.contiguous().T
    assert not padded.is_contiguous()
    state = OutputShard(padded, shard).score(x, targets)
    assert torch.equal(state.exp_NV, OutputShard(padded.contiguous(), shard).score(x, targets).exp_NV)


def test_late_inputs_of_ignored_tokens_are_zeros_not_infinite_times_zero():
    layer = OutputShard(torch.ones(4, 2), VocabShard(4), LossOptions(ignore_index=2, z_loss=0.1))
    state = layer.score(torch.full((3, 2), -5000.0), torch.tensor([2, 1, 2]))
    assert state.local_N.tolist() == [-1, 1, -1]
    late = layer.coefficients(state, state.statistics, torch.tensor(1.0))
    assert late.a_N[::2].tolist() == late.b_N[::2].tolist() == [0, 0]


def test_a_weight_that_an_optimizer_changed_is_read_anew():
    x, w, _, targets, _ = problem(vocab=38)
    shard = VocabShard(38)
    for weight in (w.clone(), w.T.contiguous().T):
        layer = OutputShard(weight, shard)
        before = layer.score(x, targets)
        weight.mul_(2)
        after = layer.score(x, targets)
        assert torch.equal(after.exp_NV, OutputShard(weight.contiguous(), shard).score(x, targets).exp_NV)
        assert not torch.equal(after.exp_NV, before.exp_NV)
