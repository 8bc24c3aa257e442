"""The whole output layer on a GPU: against float64 on the same bf16 inputs, within the bars; repeatable; in memory.

Shapes: N tokens, D hidden, V rows of the vocabulary.
"""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[1] / "kernels"))
from vocab_shards import run_plain, run_shards

from pipert.bench.vocab import rounds
from pipert.bench.vocab.batch import random_batch
from pipert.bench.vocab.exact import exact
from pipert.bench.vocab.ours import Ours
from pipert.bench.vocab.shapes import Layer, Shape
from pipert.kernels.backend_choice import backend_for
from pipert.kernels.embedding_shard import EmbeddingShard
from pipert.kernels.gpu import backend as gpu_backend
from pipert.kernels.linear_cross_entropy import vocab_parallel_logprobs_and_entropy
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.modules import VocabParallelLinearCrossEntropy
from pipert.kernels.output_shard import OutputShard
from pipert.kernels.vocab_shard import VocabShard

pytestmark = [pytest.mark.gpu, pytest.mark.kernels, pytest.mark.timeout(180)]

IGNORED = -100
SIZE = (384, 256, 4104)  # rows of 16 bytes, for TMA, also in three shards
SIZES = {"no TMA for E'": (123, 72, 507), "no TMA": (257, 123, 1001), "TMA": SIZE}
OPTIONS = {
    "smoothing and z-loss": LossOptions(label_smoothing=0.1, z_loss=0.01),
    "soft cap and z-loss": LossOptions(soft_cap=8.0, z_loss=0.01),
    "bias": LossOptions(),
}


def problem(device, size, *, sure=0.5, scale=1.0):
    """Return x, w, targets and loss gradients; a share of the tokens has P_y > 0.9, every seventh is ignored."""
    num_tokens, hidden, vocab = size
    generator = torch.Generator(device).manual_seed(sum(size))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    w_VD = (normal(vocab, hidden) / math.sqrt(hidden)).bfloat16()
    targets_N = torch.randint(vocab, (num_tokens,), generator=generator, device=device)
    targets_N[: num_tokens // 4] = targets_N[0]  # many rows add to one
    sure_N = torch.arange(num_tokens, device=device) < round(sure * num_tokens)
    towards_ND = w_VD[targets_N].float()
    towards_ND *= (math.log(vocab) + 7) * sure_N[:, None] / towards_ND.square().sum(1, keepdim=True)
    x_ND = (scale * (normal(num_tokens, hidden) + towards_ND)).bfloat16()
    targets_N[::7] = IGNORED
    return x_ND, w_VD, targets_N, normal(num_tokens).abs() / num_tokens


def off(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def torchs_own(x_ND, w_VD, targets_N, loss_grad_N):
    """Return the gradients of torch's own layer in bf16, its loss in fp32."""
    x_ND, w_VD = (tensor.detach().requires_grad_() for tensor in (x_ND, w_VD))
    losses_N = F.cross_entropy(F.linear(x_ND, w_VD).float(), targets_N, reduction="none")
    return torch.autograd.grad((losses_N * loss_grad_N).sum(), (x_ND, w_VD))


def assert_within_the_bars(found, expected):
    assert abs(float(found.loss_N.double().mean() / expected.loss_N.mean()) - 1) < 1e-5
    assert ((found.lse_N.double() - expected.lse_N).abs() <= 1e-5 * expected.lse_N.abs().clamp(min=1)).all()
    assert off(found.dx_ND, expected.dx_ND) < 3e-3
    assert off(found.dw_VD, expected.dw_VD) < 3e-3
    if expected.db_V is not None:
        assert off(found.db_V, expected.db_V) < 3e-3


def poison(device):
    """Leave NaN where the next tensors will be."""
    for size in (1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), torch.nan, device=device)


@pytest.fixture(params=["library", "fused"])
def route(request, monkeypatch):
    """S goes one way: that of cuBLAS, or that of one kernel."""
    backend = gpu_backend.GpuBackend(route=request.param)
    monkeypatch.setattr(gpu_backend, "backend", lambda: backend)


def test_bf16_runs_in_the_kernels(device):
    assert "pipert.kernels.gpu" in type(backend_for(torch.empty(1, device=device, dtype=torch.bfloat16))).__module__


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("sure", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_split_is_the_unsplit_layer(device, route, size, sure, num_shards, algorithm):
    x, w, targets, loss_grad = problem(device, size, sure=sure)
    expected = run_plain(x, w, targets, loss_grad)
    if sure:
        kept = (targets != IGNORED) & (torch.arange(len(x), device=device) < round(sure * len(x)))
        assert (expected.loss_N[kept] < -math.log(0.9)).double().mean() > 0.9
    poison(device)
    found = run_shards(x, w, targets, loss_grad, num_shards=num_shards, algorithm=algorithm)
    assert_within_the_bars(found, expected)
    own = torchs_own(x, w, targets, loss_grad)
    assert off(found.dx_ND, expected.dx_ND) < 2 * off(own[0], expected.dx_ND) + 1e-4
    assert off(found.dw_VD, expected.dw_VD) < 2 * off(own[1], expected.dw_VD) + 1e-4


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(device, route, name, num_shards):
    x, w, targets, loss_grad = problem(device, SIZE)
    bias = torch.linspace(-2, 2, SIZE[2], device=device).bfloat16() if name == "bias" else None
    expected = run_plain(x, w, targets, loss_grad, options=OPTIONS[name], bias_V=bias)
    poison(device)
    found = run_shards(x, w, targets, loss_grad, options=OPTIONS[name], num_shards=num_shards, bias_V=bias)
    assert_within_the_bars(found, expected)


@pytest.mark.parametrize("algorithm", [1, 2])
def test_repeated_runs_give_the_same_bits(device, route, algorithm):
    x, w, targets, loss_grad = problem(device, SIZE)
    first, *others = (
        run_shards(x, w, targets, loss_grad, num_shards=2, algorithm=algorithm, bound=bound)
        for bound in (None, None, None)
    )
    for other in others:
        for name in ("loss_N", "lse_N", "dx_ND", "dw_VD"):
            assert torch.equal(getattr(other, name), getattr(first, name)), name


def test_a_bound_on_the_workspace_changes_no_result_by_much(device, route):
    x, w, targets, loss_grad = problem(device, SIZE)
    expected = run_plain(x, w, targets, loss_grad)
    assert_within_the_bars(run_shards(x, w, targets, loss_grad, bound=1 << 20), expected)


def test_fewer_sms_compute_the_same_layer(device):
    x, w, targets, loss_grad = problem(device, SIZE)
    shard = VocabShard(len(w))
    results = []
    for num_sms in (None, 24):
        layer = OutputShard(w, shard, num_sms=num_sms)
        state = layer.score(x, targets, algorithm=2)
        dw = torch.zeros_like(w, dtype=torch.float32)
        layer.add_weight_grad(state, state.statistics, loss_grad, dw)
        results.append((layer.input_grad(state, state.statistics, loss_grad), dw, state.statistics.lse_N))
    for found, expected in zip(*reversed(results), strict=True):
        assert off(found, expected.double()) < 3e-3


@pytest.mark.parametrize("size", [(1, 64, 1000), (1, 72, 3)])
def test_one_token(device, route, size):
    x, w, targets, loss_grad = problem(device, size)
    targets[0] = size[2] - 1
    expected = run_plain(x, w, targets, loss_grad)
    assert_within_the_bars(run_shards(x, w, targets, loss_grad, algorithm=2), expected)


def test_shards_of_padding_only(device, route):
    x, w, targets, loss_grad = problem(device, (123, 72, 5))
    assert VocabShard(5, 4, 3).num_real == 0
    expected = run_plain(x, w, targets, loss_grad)
    assert_within_the_bars(run_shards(x, w, targets, loss_grad, num_shards=4, algorithm=2), expected)


def test_ignored_tokens_alone(device, route):
    x, w, _, loss_grad = problem(device, (123, 72, 507))
    targets = torch.full((123,), IGNORED, device=device)
    found = run_shards(x, w, targets, loss_grad, num_shards=2, algorithm=2)
    for result in (found.loss_N, found.dx_ND, found.dw_VD):
        assert torch.equal(result, torch.zeros_like(result))


def test_logits_of_ten_thousand(device, route):
    x, w, targets, loss_grad = problem(device, (123, 72, 507), sure=0, scale=4000)
    expected = run_plain(x, w, targets, loss_grad)
    assert expected.lse_N.max() > 1e4
    assert_within_the_bars(run_shards(x, w, targets, loss_grad, num_shards=2, algorithm=2), expected)


def test_a_target_out_of_range_shows_in_the_loss(device, route):
    x, w, targets, loss_grad = problem(device, (123, 72, 507))
    targets[3] = 507
    losses = run_shards(x, w, targets, loss_grad, num_shards=2).loss_N
    assert losses.isnan().nonzero().flatten().tolist() == [3]


def test_more_entries_than_32_bits_count(device, route):
    shape = Shape(Layer("large", 64, 262_150), 1, 8200)
    assert shape.num_tokens * shape.shard.size > 1 << 31
    batch = random_batch(shape, device)
    errors = exact(batch).errors_of(Ours(batch).step())
    assert errors.loss < 1e-5
    assert errors.input_grad < 3e-3
    assert errors.weight_grad < 3e-3


def test_nothing_of_all_logits_is_held_in_fp32(device, route):
    shape = Shape(Layer("wide", 512, 65_536), 1, 4096)
    ours = Ours(random_batch(shape, device))
    ours.step()  # tuning may need more
    exp_bytes = 2 * shape.num_tokens * shape.shard.size
    assert exp_bytes <= rounds.extra_bytes(ours.step) < 2 * exp_bytes
    assert rounds.extra_bytes(ours.forward) < exp_bytes


def test_log_probabilities_and_entropy(device, route):
    x, w, targets, _ = problem(device, SIZE)
    logprob, entropy = vocab_parallel_logprobs_and_entropy(x, w, targets, shard=VocabShard(len(w)))
    expected = (x.double() @ w.double().T).log_softmax(1)
    torch.testing.assert_close(entropy.double(), -(expected.exp() * expected).sum(1), rtol=1e-4, atol=1e-4)
    kept = targets != IGNORED
    wanted = expected.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(logprob[kept].double(), wanted[kept], rtol=1e-4, atol=1e-4)
    assert not logprob[~kept].any()


@pytest.mark.parametrize("bound", [None, 1 << 20])
def test_the_module_trains_under_compile(device, bound):
    layer = VocabParallelLinearCrossEntropy(
        256, SIZE[2], max_workspace_bytes=bound, device=device, dtype=torch.bfloat16
    )
    x, w, targets, _ = problem(device, SIZE)
    layer.load_full(w)
    found = []
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.weight.main_grad = torch.zeros(SIZE[2], 256, device=device)
        leaf = x.detach().requires_grad_()
        loss = call(leaf, targets)
        loss.backward()
        found.append((loss.detach(), leaf.grad, layer.weight.main_grad))
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)
    kept = (targets != IGNORED).double()
    expected = run_plain(x, w, targets, kept / kept.sum())
    loss, dx, dw = found[0]
    assert off(loss, expected.loss_N.sum() / kept.sum()) < 1e-5
    assert off(dx, expected.dx_ND) < 4e-3  # in bf16
    assert off(dw, expected.dw_VD) < 3e-3


@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_embedding_and_its_gradient(device, num_shards):
    generator = torch.Generator(device).manual_seed(0)
    vocab, hidden = 507, 72
    w = torch.randn(vocab, hidden, generator=generator, device=device).bfloat16()
    tokens = torch.randint(vocab, (1200,), generator=generator, device=device)
    grad = torch.randn(1200, hidden, generator=generator, device=device).bfloat16()
    padded = F.pad(w, (0, 0, 0, VocabShard(vocab, num_shards).padded_vocab_size - vocab))
    embedded, grads = torch.zeros_like(grad), []
    for index, piece in enumerate(padded.chunk(num_shards)):
        shard = EmbeddingShard(piece.contiguous(), VocabShard(vocab, num_shards, index))
        embedded += shard.embed(tokens)
        twice = [torch.ones_like(piece, dtype=torch.float32) for _ in range(2)]
        for main_grad in twice:
            shard.add_grad(grad, tokens, main_grad)
        assert torch.equal(*twice)
        grads.append(twice[0])
    assert torch.equal(embedded, w[tokens])
    expected = torch.ones(vocab, hidden, device=device, dtype=torch.float64)
    expected.index_put_((tokens,), grad.double(), accumulate=True)
    torch.testing.assert_close(torch.cat(grads)[:vocab].double(), expected, rtol=1e-5, atol=1e-5)
