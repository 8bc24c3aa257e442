"""The bars on bf16 inputs, against float64 on the same inputs, also where most tokens are confident."""

import pytest
import torch
from vocab_shards import run_plain, run_shards

from pipert.kernels import VocabShard, vocab_parallel_linear_cross_entropy

NUM_TOKENS, HIDDEN, VOCAB = 512, 128, 2053


def tokens(confident: float):
    """Return bf16 (x, w) and targets, of which the share ``confident`` has P_y > 0.9."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(VOCAB, HIDDEN, generator=generator)
    x = torch.randn(NUM_TOKENS, HIDDEN, generator=generator) * 0.2
    targets = torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)
    sure = torch.arange(NUM_TOKENS) < round(confident * NUM_TOKENS)
    # Each sure token wins by another margin; P_y from 0.9 to nearly 1.
    margin = 19 + 6 * torch.rand(NUM_TOKENS, 1, generator=generator)
    x = torch.where(sure[:, None], x + margin * w[targets] / w[targets].square().sum(1, keepdim=True), x).bfloat16()
    w = w.bfloat16()
    logits = x.double() @ w.double().T
    probability = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    assert (probability > 0.9).double().mean().item() == pytest.approx(confident, abs=5e-3)
    return x, w, targets


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def torch_errors(x, w, targets, expected):
    """Return dX's and dW's error of a bf16 linear layer followed by torch's cross entropy in fp32."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    torch.nn.functional.cross_entropy((x @ w.T).float(), targets).backward()
    return relative(x.grad, expected.dx_ND), relative(w.grad, expected.dw_VD)


@pytest.mark.parametrize("confident", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_bars_hold(confident, num_shards):
    x, w, targets = tokens(confident)
    loss_grad = torch.full((NUM_TOKENS,), 1 / NUM_TOKENS)
    expected = run_plain(x, w, targets, loss_grad.double())
    bars = [min(3e-3, 2 * error + 1e-4) for error in torch_errors(x, w, targets, expected)]
    for algorithm in (1, 2):
        found = run_shards(x, w, targets, loss_grad, num_shards=num_shards, algorithm=algorithm)
        assert found.loss_N.double().mean().item() == pytest.approx(expected.loss_N.mean().item(), rel=1e-5)
        torch.testing.assert_close(found.lse_N.double(), expected.lse_N, rtol=1e-5, atol=0)
        assert relative(found.dx_ND, expected.dx_ND) <= bars[0]
        assert relative(found.dw_VD, expected.dw_VD) <= bars[1]


@pytest.mark.parametrize("confident", [0.0, 0.99])
@pytest.mark.parametrize("bound", [None, 1 << 20])
def test_the_bars_hold_through_autograd(confident, bound):
    x, w, targets = tokens(confident)
    shard = VocabShard(VOCAB)
    expected = run_plain(x, w, targets, torch.full((NUM_TOKENS,), 1 / NUM_TOKENS, dtype=torch.float64))
    bars = [min(3e-3, 2 * error + 1e-4) for error in torch_errors(x, w, targets, expected)]
    x.requires_grad_()
    weight = torch.cat([w, torch.zeros(1, HIDDEN)]).bfloat16().requires_grad_()
    loss = vocab_parallel_linear_cross_entropy(x, weight, targets, shard=shard, max_workspace_bytes=bound)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.loss_N.mean().item(), rel=1e-5)
    assert x.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert relative(x.grad, expected.dx_ND) <= bars[0]
    assert relative(weight.grad[:VOCAB], expected.dw_VD) <= bars[1]
