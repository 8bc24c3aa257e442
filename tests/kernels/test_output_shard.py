"""S and T of the shards, in one process, against the unsplit layer in float64, and against finite differences."""

import pytest
import torch
from vocab_problems import OPTIONS, assert_close, problem
from vocab_shards import plain_losses, run_plain, run_shards, split

from pipert.kernels import LossOptions, OutputShard, VocabShard, combine

FIELDS = ("loss_N", "lse_N", "dx_ND", "dw_VD", "db_V")


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("num_shards", [1, 3, 4])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_and_split_is_the_unsplit_layer(options, with_bias, num_shards, algorithm):
    x, w, bias, targets, loss_grad = problem()
    targets[targets == -100] = options.ignore_index
    bias = bias if with_bias else None
    expected = run_plain(x, w, targets, loss_grad, options=options, bias_V=bias)
    found = run_shards(
        x, w, targets, loss_grad, options=options, num_shards=num_shards, algorithm=algorithm, bias_V=bias
    )
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_against_finite_differences(options):
    x, w, bias, targets, loss_grad = problem(num_tokens=5, hidden=3, vocab=9)
    targets[targets == -100] = options.ignore_index
    arguments = {"options": options, "num_shards": 2}
    found = run_shards(x, w, targets, loss_grad, algorithm=2, bias_V=bias, **arguments)
    for leaf, grad in ((x, found.dx_ND), (w, found.dw_VD), (bias, found.db_V)):
        for place in range(leaf.numel()):
            sums = []
            before = leaf.view(-1)[place].item()
            for step in (1e-5, -1e-5):
                leaf.view(-1)[place] = before + step
                sums.append((run_shards(x, w, targets, loss_grad, bias_V=bias, **arguments).loss_N @ loss_grad).item())
            leaf.view(-1)[place] = before
            assert grad.view(-1)[place].item() == pytest.approx((sums[0] - sums[1]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_bound_changes_nothing_but_the_chunks(options, num_shards):
    x, w, bias, targets, loss_grad = problem()
    targets[targets == -100] = options.ignore_index
    expected = run_plain(x, w, targets, loss_grad, options=options, bias_V=bias)
    for bound in (1, 3000):
        found = run_shards(x, w, targets, loss_grad, options=options, num_shards=num_shards, bias_V=bias, bound=bound)
        assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_bitwise_repeatable_with_repeated_targets(dtype, algorithm):
    x, w, bias, targets, loss_grad = problem(num_tokens=203, hidden=33, vocab=77, dtype=dtype)
    targets[50:120] = 8
    once, again = (
        run_shards(x, w, targets, loss_grad, num_shards=2, algorithm=algorithm, bias_V=bias) for _ in range(2)
    )
    for name in FIELDS:
        assert torch.equal(getattr(once, name), getattr(again, name))
    assert once.dw_VD.dtype == torch.float32


def test_gradients_are_added_to_what_is_there():
    x, w, _, targets, loss_grad = problem()
    layer = OutputShard(split(w, VocabShard(37)), VocabShard(37))
    state = layer.score(x, targets)
    stats = combine(state.statistics.packed_KN[None])
    sums = [torch.full((38, 7), start, dtype=torch.float64) for start in (0.0, 5.0)]
    for main_grad in sums:
        layer.add_weight_grad(state, stats, loss_grad, main_grad)
    torch.testing.assert_close(sums[0] + 5, sums[1])
    assert (sums[1][37] == 5).all()


def test_the_gradient_of_a_loss_may_be_one_number_and_come_late():
    x, w, _, targets, _ = problem()
    layer = OutputShard(split(w, VocabShard(37)), VocabShard(37))
    state = layer.score(x, targets)
    stats = combine(state.statistics.packed_KN[None])
    scale = 1 / (targets != -100).sum()
    expected = run_plain(x, w, targets, scale.expand(len(x)))
    torch.testing.assert_close(layer.input_grad(state, stats, scale), expected.dx_ND, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forward_only_has_the_losses_of_s(options):
    x, w, bias, targets, _ = problem()
    targets[targets == -100] = options.ignore_index
    shards = [VocabShard(37, 3, index) for index in range(3)]
    layers = [OutputShard(split(w, shard), shard, options, split(bias, shard)) for shard in shards]
    stats = combine(torch.stack([layer.statistics(x, targets).packed_KN for layer in layers]))
    expected = plain_losses(x, w, targets, options, bias)
    torch.testing.assert_close(layers[0].losses(stats, targets), expected, atol=1e-12, rtol=1e-12)


def test_smoothing_is_over_the_whole_vocabulary_not_the_shard():
    x, w, _, targets, loss_grad = problem(vocab=5)
    options = LossOptions(label_smoothing=0.3)
    found = run_shards(x, w, targets.clamp(max=4), loss_grad, options=options, num_shards=4)
    expected = torch.nn.functional.cross_entropy(x @ w.T, targets.clamp(max=4), reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(found.loss_N, expected)
