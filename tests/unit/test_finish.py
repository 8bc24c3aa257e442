import copy

import pytest
import torch
from torch import nn

from pipert.errors import ConfigError, PipertError
from pipert.finish import Finish

HOLDERS = [[0], [1], [0]]


class Weight(nn.Module):
    def __init__(self, *gradient):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(gradient)))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.weight.grad = torch.tensor(gradient)


def three_stages():
    return {0: Weight(1.0, 2.0), 1: Weight(4.0, 8.0), 2: Weight(16.0, 32.0)}


def finish(modules, holders=HOLDERS, **options):
    """The end of a step; modules are keyed by stage, or by (rank, stage)."""
    modules = {key if isinstance(key, tuple) else (holders[key][0], key): modules[key] for key in modules}
    result = Finish(holders, modules, None, None, counting_rank=holders[-1][0], **options)
    result.connect()
    return result


def parameters(modules):
    return [module.weight for module in modules.values()]


def test_without_an_optimizer_gradients_stay_and_copies_are_summed():
    modules = three_stages()
    norm = finish(modules, tied=[((0, "weight"), (2, "weight"))])(0, None, per_token=False)
    assert norm is None
    assert [w.grad.tolist() for w in parameters(modules)] == [[17, 34], [4, 8], [17, 34]]


def test_a_copy_without_a_gradient_gets_the_sum():
    modules = three_stages()
    modules[2].weight.grad = None
    finish(modules, tied=[((2, "weight"), (1, "weight"))])(0, None, per_token=False)
    assert modules[2].weight.grad.tolist() == [4, 8]
    assert modules[2].weight.grad.data_ptr() != modules[1].weight.grad.data_ptr()


def test_copies_are_summed_in_rank_order():
    modules = {0: Weight(1e8), 1: Weight(1.0), 2: Weight(-1e8)}  # ranks 0, 1, 0: (1e8 - 1e8) + 1
    finish(modules, tied=[[(stage, "weight") for stage in modules]])(0, None, per_token=False)
    assert [w.grad.item() for w in parameters(modules)] == [1, 1, 1]


def test_gradients_are_divided_by_the_tokens():
    modules = three_stages()
    finish(modules)(0, torch.tensor(4), per_token=True)
    assert modules[1].weight.grad.tolist() == [1, 2]


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_the_end_of_a_step_is_torchs(clip_norm):
    modules, mirror = three_stages(), three_stages()
    optimizer = torch.optim.AdamW(parameters(modules), lr=0.1)
    norm = finish(modules, optimizer=optimizer, clip_norm=clip_norm)(0, None, per_token=False)
    expected = nn.utils.clip_grad_norm_(parameters(mirror), clip_norm or float("inf"))
    torch.optim.AdamW(parameters(mirror), lr=0.1).step()
    assert torch.equal(norm, expected)
    for weight, mirrored in zip(parameters(modules), parameters(mirror), strict=True):
        assert torch.equal(weight, mirrored)
        assert weight.grad is None


def test_a_tied_parameter_counts_once_in_the_norm():
    modules = three_stages()
    optimizer = torch.optim.SGD(parameters(modules), lr=0.0)
    norm = finish(modules, optimizer=optimizer, tied=[((0, "weight"), (2, "weight"))])(0, None, per_token=False)
    assert norm == pytest.approx(torch.linalg.vector_norm(torch.tensor([17.0, 34.0, 4.0, 8.0])))


def test_main_gradients_are_used_and_dropped():
    modules = three_stages()
    for weight in parameters(modules):
        weight.main_grad, weight.grad = weight.grad, None
    seen = []

    class Recording:
        def step(self):
            seen.extend(weight.main_grad.clone() for weight in parameters(modules))

        def zero_grad(self):
            pass

    norm = finish(modules, optimizer=Recording(), clip_norm=1.0)(0, None, per_token=False)
    assert norm > 30
    assert torch.linalg.vector_norm(torch.cat(seen)) == pytest.approx(1.0, abs=1e-5)
    assert all(weight.main_grad is None for weight in parameters(modules))


def test_a_norm_that_is_not_finite_changes_nothing():
    modules = three_stages()
    before = copy.deepcopy([w.data for w in parameters(modules)])
    modules[1].weight.grad[0] = float("nan")
    optimizer = torch.optim.SGD(parameters(modules), lr=1.0)
    with pytest.raises(PipertError, match="step 7: the gradient norm is nan"):
        finish(modules, optimizer=optimizer)(7, None, per_token=False)
    assert all(map(torch.equal, before, parameters(modules)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": [((0, "weight"), (5, "weight"))]}, "no stage 5"),
        ({"tied": [((0, "weight"), (1, "wieght"))]}, "'wieght'"),
        ({"tied": [((0, "weight"), (1, "frozen"))]}, "'frozen' that requires grad"),
        ({"tied": [((0, "weight"), (0, "weight"))]}, "more than once"),
        ({"clip_norm": 1.0}, "needs an optimizer"),
        ({"clip_norm": -1.0}, "positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        finish(three_stages(), **options)
