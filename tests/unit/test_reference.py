"""The reference against loops that anyone would write."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pipert
from pipert.errors import ConfigError
from pipert.ir import Op
from pipert.numerics import op_seed


@dataclass
class Order:
    """As much of a plan as the reference looks at."""

    ops: tuple
    num_microbatches: int
    stage_ranks: tuple = (0, 1, 2)

    @property
    def num_stages(self):
        return len(self.stage_ranks)

    @property
    def num_ranks(self):
        return len(set(self.stage_ranks))

    def holders(self, stage):
        return (self.stage_ranks[stage],)

    def rank_of_stage(self, stage, microbatch):
        return self.stage_ranks[stage]


def order_of(text, stage_ranks=(0, 1, 2)):
    ops = tuple(Op.parse(word) for word in text.split())
    return Order(ops, 1 + max(op.microbatch for op in ops), stage_ranks)


ASCENDING = order_of(" ".join(f"{stage}B{mb}" for stage in range(3) for mb in range(4)))
MIXED = order_of("2B3 2I1 1B3 2W1 2B0 2B2 0B2 0B3 0B1 0B0 (1B0;1B2)OVERLAP_F_B 1B1")


def build(dropout=0.0):
    torch.manual_seed(3)
    return {
        0: nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 8), nn.Dropout(dropout)),
        1: nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True),
        2: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 13, bias=False)),
    }


def batch(num_rows=8):
    torch.manual_seed(4)
    return torch.randint(13, (num_rows, 5)), torch.randint(13, (num_rows, 5))


def loss_fn(logits, target):
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def token_loss_fn(logits, target):
    counted = target.flatten() > 3
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")[counted].sum(), counted.sum()


def gradients(modules):
    return [p.grad for stage in sorted(modules) for p in modules[stage].parameters()]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_it_is_the_naive_loop():
    modules, naive = build(), build()
    inputs, targets = batch()
    result = pipert.reference_step(ASCENDING, modules, inputs, targets, loss_fn)
    losses = []
    for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
        for stage in range(3):
            x = naive[stage](x)
        loss = loss_fn(x, y)
        (loss / 4).backward()
        losses.append(loss.detach())
    assert torch.equal(result.losses, torch.stack(losses))
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    assert_same(gradients(modules), gradients(naive))


@pytest.mark.parametrize("order", [ASCENDING, MIXED], ids=["ascending", "mixed"])
def test_gradients_are_added_in_the_plans_order_under_the_seeds_of_its_ops(order):
    modules, naive = build(dropout=0.3), build(dropout=0.3)
    inputs, targets = batch()
    pipert.reference_step(order, modules, inputs, targets, loss_fn, seed=5, step=6)
    parts = {}
    for mb, (x, y) in enumerate(zip(inputs.chunk(4), targets.chunk(4), strict=True)):
        for stage in range(3):
            torch.manual_seed(op_seed(5, 6, stage, mb))
            x = naive[stage](x)
        (loss_fn(x, y) / 4).backward()
        for stage in range(3):
            parts[stage, mb] = [p.grad for p in naive[stage].parameters()]
            naive[stage].zero_grad()
    for op in order.ops:
        for part in op.unpacked:
            if part.kind.text in "BW":
                for p, grad in zip(naive[part.stage].parameters(), parts[part.stage, part.microbatch], strict=True):
                    p.grad = grad if p.grad is None else p.grad + grad
    assert_same(gradients(modules), gradients(naive))


def test_gradients_are_added_to_those_that_are_there():
    modules, twice = build(), build()
    inputs, targets = batch()
    pipert.reference_step(ASCENDING, modules, inputs, targets, loss_fn)
    for _ in range(2):
        pipert.reference_step(ASCENDING, twice, inputs, targets, loss_fn, accumulate=True)
    for once, both in zip(gradients(modules), gradients(twice), strict=True):
        torch.testing.assert_close(2 * once, both)


def test_microbatches_of_different_lengths():
    modules, naive = build(), build()
    inputs = [batch(n)[0] for n in (3, 1, 2, 5)]
    targets = [batch(n)[1] for n in (3, 1, 2, 5)]
    pipert.reference_step(ASCENDING, modules, inputs, targets, loss_fn)
    for x, y in zip(inputs, targets, strict=True):
        (loss_fn(naive[2](naive[1](naive[0](x))), y) / 4).backward()
    assert_same(gradients(modules), gradients(naive))


def test_the_mean_over_tokens_over_two_steps():
    modules, naive = build(), build()
    inputs, targets = batch()
    first = pipert.reference_step(
        ASCENDING, modules, inputs, targets, token_loss_fn, loss_reduction="token", accumulate=True
    )
    second = pipert.reference_step(
        ASCENDING, modules, inputs, targets, token_loss_fn, loss_reduction="token", num_tokens=first.num_tokens
    )
    count = 0
    for _ in range(2):
        for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
            total, tokens = token_loss_fn(naive[2](naive[1](naive[0](x))), y)
            total.backward()
            count += int(tokens)
    for p in (p for module in naive.values() for p in module.parameters()):
        p.grad /= count
    assert int(second.num_tokens) == count == 2 * int(first.num_tokens)
    assert first.grad_norm is None
    assert_same(gradients(modules), gradients(naive))
    torch.testing.assert_close(
        second.loss, token_loss_fn(build()[2](build()[1](build()[0](inputs))), targets)[0] / count * 2
    )


def test_clipping_is_that_of_torch():
    modules, naive = build(), build()
    inputs, targets = batch()
    norm = pipert.reference_step(ASCENDING, modules, inputs, targets, loss_fn, clip_norm=0.1).grad_norm
    for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
        (loss_fn(naive[2](naive[1](naive[0](x))), y) / 4).backward()
    parameters = [p for stage in range(3) for p in naive[stage].parameters()]
    assert torch.equal(norm, nn.utils.clip_grad_norm_(parameters, 0.1))
    assert_same(gradients(modules), gradients(naive))


def test_tied_copies_get_the_sum_in_rank_order_and_count_once():
    tie = [((0, "0.weight"), (2, "1.weight"))]
    parts = {}
    for stage_ranks in ((0, 1, 2), (1, 2, 0)):
        modules, alone = build(), build()
        for kind in (modules, alone):
            kind[2][1].weight.data.copy_(kind[0][0].weight.data)
        inputs, targets = batch()
        order = order_of(" ".join(f"{stage}B{mb}" for stage in range(3) for mb in range(4)), stage_ranks)
        norm = pipert.reference_step(order, modules, inputs, targets, loss_fn, tied=tie).grad_norm
        pipert.reference_step(order, alone, inputs, targets, loss_fn)
        first, last = alone[0][0].weight.grad, alone[2][1].weight.grad
        expected = first + last if stage_ranks[0] == 0 else last + first
        assert torch.equal(modules[0][0].weight.grad, expected)
        assert torch.equal(modules[2][1].weight.grad, expected)
        assert modules[0][0].weight.grad.data_ptr() != modules[2][1].weight.grad.data_ptr()
        counted = gradients({0: modules[0], 1: modules[1], 2: modules[2][0]})
        parts[stage_ranks] = (norm, torch.stack([g.norm() for g in counted]).norm())
    for norm, expected in parts.values():
        assert torch.equal(norm, expected)


def test_main_gradients_of_another_type():
    modules = {stage: module.bfloat16() for stage, module in build().items()}
    naive = {stage: module.bfloat16() for stage, module in build().items()}
    inputs, targets = batch()
    pipert.reference_step(ASCENDING, modules, inputs, targets, loss_fn, main_grad_dtype=torch.float32)
    sums = {}
    for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
        (loss_fn(naive[2](naive[1](naive[0](x))), y) / 4).backward()
        for stage in range(3):
            for name, p in naive[stage].named_parameters():
                sums[stage, name] = sums.get((stage, name), 0) + p.grad.float()
                p.grad = None
    for stage in range(3):
        for name, p in modules[stage].named_parameters():
            assert p.grad is None
            assert p.main_grad.dtype == torch.float32
            assert torch.equal(p.main_grad, sums[stage, name])


def test_the_callers_random_state_stays():
    state = torch.get_rng_state()
    pipert.reference_step(ASCENDING, build(dropout=0.5), *batch(), loss_fn)
    torch.manual_seed(3)
    build()
    batch()
    after = torch.get_rng_state()
    pipert.reference_step(ASCENDING, build(dropout=0.5), *batch(), loss_fn)
    assert torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(state)


def test_frozen_and_unused_parameters_have_no_gradient():
    modules = build()
    modules[1].requires_grad_(False)
    modules[2].register_parameter("unused", nn.Parameter(torch.zeros(3)))
    result = pipert.reference_step(ASCENDING, modules, *batch(), loss_fn, clip_norm=1.0)
    assert all(p.grad is None for p in modules[1].parameters())
    assert modules[2].unused.grad is None
    assert torch.isfinite(result.grad_norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda modules: modules.pop(1), "stages 0, 2 were given"),
        (lambda modules: modules[2].register_module("again", modules[0][1]), "share a parameter"),
    ],
)
def test_modules_that_do_not_fit_are_refused(change, message):
    modules = build()
    change(modules)
    with pytest.raises(ConfigError, match=message):
        pipert.reference_step(ASCENDING, modules, *batch(), loss_fn)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="no such parameter"):
        pipert.reference_step(ASCENDING, build(), *batch(), loss_fn, tied=[((0, "0.weight"), (2, "head.weight"))])
    with pytest.raises(ConfigError, match="no backward"):
        pipert.reference_step(order_of("0B0 0B1 1B0 1B1 2B0"), build(), *batch(), loss_fn)
    with pytest.raises(ConfigError, match="loss_reduction"):
        pipert.reference_step(ASCENDING, build(), *batch(), loss_fn, loss_reduction="sum")
