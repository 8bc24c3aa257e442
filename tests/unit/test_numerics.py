"""What the engine and the reference compute alike."""

import pytest
import torch

from pipert import numerics
from pipert.errors import ConfigError


def test_op_seeds_are_distinct_in_their_low_bits():
    seeds = {
        numerics.op_seed(seed, step, stage, microbatch) & 0xFFFFFFFF
        for seed in (0, 1)
        for step in (0, 1, 2)
        for stage in range(8)
        for microbatch in range(32)
    }
    assert len(seeds) == 2 * 3 * 8 * 32


def test_seeding_an_op_is_reproducible_and_the_callers_state_comes_back():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draws = []
    with numerics.preserved_rng():
        for _ in range(2):
            numerics.seed_op(1, 2, 3, 4)
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.rand(3), expected)


def test_a_tensor_is_cut_on_dimension_0_the_larger_pieces_first():
    pieces = numerics.split_microbatches(torch.arange(10), 4)
    assert [piece.tolist() for piece in pieces] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


def test_tuples_are_cut_together_and_lists_are_taken_as_they_are():
    a, b = torch.arange(4), torch.arange(8).view(4, 2)
    pieces = numerics.split_microbatches((a, b), 2)
    assert [tuple(part.shape for part in piece) for piece in pieces] == [((2,), (2, 2))] * 2
    ready = [torch.zeros(1), torch.zeros(5)]
    assert numerics.split_microbatches(ready, 2) == ready
    assert numerics.split_microbatches(None, 3) == [None, None, None]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 2), "3 rows cannot be cut into 4"),
        ([torch.zeros(1)] * 3, "4 microbatches, the list 3"),
        ("abc", "not a str"),
        ((), "not a tuple of nothing"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(ConfigError, match=message):
        numerics.split_microbatches(batch, 4)


def test_as_tensors():
    x = torch.zeros(2)
    assert numerics.as_tensors(x) == (x,)
    assert numerics.as_tensors([x, x]) == (x, x)
    assert numerics.as_tensors(None) == ()
    with pytest.raises(ConfigError, match="a dict"):
        numerics.as_tensors({"x": x})


def test_the_mean_over_microbatches_has_the_gradient_of_a_naive_division():
    x = torch.randn(3, requires_grad=True)
    loss = numerics.microbatch_loss(lambda y, t: (y - t).square().sum(), (x * 1,), torch.ones(3), "microbatch", 3)
    (grad,) = torch.autograd.grad(loss.root, x, loss.root_grad)
    (naive,) = torch.autograd.grad((x - torch.ones(3)).square().sum() / 3, x)
    assert torch.equal(grad, naive)


def test_the_mean_over_tokens_weighs_microbatches_by_their_tokens():
    def loss_fn(y, t):
        return y.sum(), t

    losses = [numerics.microbatch_loss(loss_fn, (torch.full((n,), 2.0 * n),), n, "token", 2) for n in (1, 3)]
    loss, per_microbatch, count = numerics.total_loss(losses)
    assert int(count) == 4
    assert per_microbatch.tolist() == [2.0, 6.0]
    assert loss.item() == (2 + 18) / 4
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.tensor([8.0])
    numerics.divide_gradients([parameter, torch.zeros(1, requires_grad=True)], count)
    assert parameter.grad.item() == 2.0


def test_a_step_without_tokens_has_loss_zero():
    losses = [numerics.microbatch_loss(lambda y, t: (y.sum() * 0, 0), (torch.ones(1),), None, "token", 1)]
    assert numerics.total_loss(losses)[0].item() == 0.0


@pytest.mark.parametrize("result", [torch.zeros(2), 1.0, (torch.zeros(()), 1)])
def test_a_loss_that_is_no_scalar_is_refused(result):
    with pytest.raises(ConfigError, match="scalar"):
        numerics.microbatch_loss(lambda y, t: result, (torch.zeros(1),), None, "microbatch", 1)


def test_a_token_loss_must_be_a_pair():
    with pytest.raises(ConfigError, match="sum, count"):
        numerics.microbatch_loss(lambda y, t: y.sum(), (torch.zeros(1),), None, "token", 1)
    with pytest.raises(ConfigError, match="'mean'"):
        numerics.check_reduction("mean")


def test_the_norm_and_the_clipping_are_those_of_torch():
    torch.manual_seed(0)
    ours = [torch.randn(n, 5, requires_grad=True) for n in range(1, 20)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    norm = numerics.global_norm([numerics.gradient_norm(p) for p in ours])
    numerics.clip_gradients(ours, numerics.clip_coefficient(norm, 0.5))
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs, 0.5))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))


def test_a_parameter_without_gradient_counts_as_zero_and_main_grad_comes_first():
    p = torch.zeros(2, requires_grad=True)
    assert numerics.gradient_norm(p).item() == 0.0
    p.grad = torch.tensor([3.0, 4.0])
    assert numerics.gradient_norm(p).item() == 5.0
    p.main_grad = torch.tensor([6.0, 8.0])
    assert numerics.gradient_norm(p).item() == 10.0
    assert numerics.global_norm([]).item() == 0.0


def test_parameters_are_in_model_order_and_copies_in_rank_order():
    names = {(0, 3): ["norm", "head"], (1, 0): ["embedding", "scale"], (2, 3): ["norm", "head"]}
    tie = ((3, "head"), (0, "embedding"))
    assert numerics.model_parameters(names, [tie]) == [
        ((0, 3, "head"), (1, 0, "embedding"), (2, 3, "head")),
        ((1, 0, "scale"),),
        ((0, 3, "norm"), (2, 3, "norm")),
    ]


def test_copies_are_summed_into_new_memory():
    gradients = [torch.tensor([1.0]), None, torch.tensor([2.0])]
    assert numerics.sum_copies(gradients).item() == 3.0
    assert gradients[0].item() == 1.0
    assert numerics.sum_copies([None]) is None
