"""What a stage promises beside its bits: hooks, memory, recomputation, refusals."""

import gc
import weakref

import pytest
import torch
from torch import nn
from zoo import Fn, Round, dropped_out

from pipert.errors import ConfigError
from pipert.stages import Stage, StageProtocol


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


def run(stage, microbatch, kinds, x, grad=None):
    """Run F and then ``kinds`` on one microbatch; return the output and the input's gradient."""
    (y,) = stage.forward(microbatch, (x,))
    grad = torch.ones_like(y) if grad is None else grad
    result = None
    for kind in kinds:
        if kind == "R":
            stage.recompute(microbatch)
        elif kind == "W":
            stage.weight_grad(microbatch)
        else:
            (result,) = (stage.backward if kind == "B" else stage.input_grad)(microbatch, (grad,))
    return y, result


def test_it_is_a_stage():
    assert isinstance(Stage(nn.Identity()), StageProtocol)


def test_outputs_tell_whether_they_need_a_gradient():
    stage = Stage(Fn(lambda m, a, i: (m.a(a), a.detach(), i, a), a=nn.Linear(8, 8)))
    for x, expected in ((leaf(2, 8), [True, False, False, True]), (torch.randn(2, 8), [True, False, False, False])):
        outputs = stage.forward(0, (x, torch.zeros(2, dtype=torch.long)))
        assert [y.requires_grad for y in outputs] == expected
        assert all(y.is_leaf for y in outputs)
        stage.discard()


def test_inputs_with_a_graph_or_a_gradient_or_given_twice_do_no_harm():
    stage = Stage(Fn(lambda m, a, b: a * 2 + b * 3))
    x = leaf(4)
    x.grad = torch.ones(4)
    for inputs in ((x * 1, x * 1), (x, x)):
        for op in ("backward", "input_grad"):
            stage.forward(0, inputs)
            grads = getattr(stage, op)(0, (torch.ones(4),))
            stage.discard()
            assert [grad.tolist() for grad in grads] == [[2.0] * 4, [3.0] * 4]
    assert x.grad.tolist() == [1.0] * 4


def test_an_inputs_gradient_is_not_left_behind():
    stage, x = Stage(nn.Linear(8, 8)), leaf(2, 8)
    first = run(stage, 0, "B", x)[1]
    second = run(stage, 0, "B", x)[1]
    assert x.grad is None
    assert torch.equal(first, second)


@pytest.mark.parametrize("kinds", ["B", "IW"])
def test_hooks_on_parameters_run_once_per_op(kinds):
    module = Fn(
        lambda m, a: m.n(m.a(m.a(a))) + m.s,
        a=nn.Linear(8, 8),
        n=nn.LayerNorm(8),
        s=nn.Parameter(torch.randn(8)),
    )
    plain = Fn(module.function, a=nn.Linear(8, 8), n=nn.LayerNorm(8), s=nn.Parameter(torch.zeros(8)))
    plain.load_state_dict(module.state_dict())
    calls = []
    for p in module.parameters():
        p.register_hook(lambda grad: grad * 2)
        p.register_post_accumulate_grad_hook(lambda p: calls.append(id(p)))
    stage, x = Stage(module), leaf(2, 8)
    for microbatch in range(2):
        run(stage, microbatch, kinds, x)
        plain(x.detach()).backward(torch.ones(2, 8))
    assert sorted(calls) == sorted(id(p) for p in module.parameters() for _ in range(2))
    for p, q in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad * 2)


def test_gradients_of_a_python_function_on_a_weight_survive_until_they_are_added():
    stage = Stage(Fn(lambda m, a: a @ Round.apply(m.w * 1).t(), w=nn.Parameter(torch.randn(5, 8))))
    x = leaf(2, 8)
    stage.forward(0, (x,))
    stage.input_grad(0, (torch.ones(2, 5),))
    gc.collect()
    stage.weight_grad(0)
    assert torch.equal(stage.module.w.grad, torch.ones(2, 5).t() @ x)


@pytest.mark.parametrize("kinds", ["B", "IW"])
def test_gradients_do_not_live_in_the_memory_of_what_came_in_or_goes_out(kinds):
    received = torch.randn(2, 8)
    given = received.clone()
    module = Fn(
        lambda m, a: a + m.p.view(2, 8) + m.q.view(2, 8),
        p=nn.Parameter(torch.zeros(16)),
        q=nn.Parameter(torch.zeros(16)),
    )
    stage = Stage(module)
    _, result = run(stage, 0, kinds, leaf(2, 8), received)
    result.add_(1)
    received.zero_()
    module.p.grad.add_(0)
    assert torch.equal(module.p.grad, given.flatten())
    module.p.grad.zero_()
    assert torch.equal(module.q.grad, given.flatten())


class Tracer(torch.autograd.Function):
    """The identity, whose saved tensor is a copy with a name."""

    @staticmethod
    def forward(ctx, x, held, name):
        copy = x.clone()
        held[name] = weakref.ref(copy)
        ctx.copy = copy
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad + ctx.copy * 0, None, None


def test_the_graph_dies_with_the_input_gradients():
    held = {}
    module = Fn(
        lambda m, a: Tracer.apply(m.b(Tracer.apply(m.a(a), held, "first")), held, "second"),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 8),
    )

    def alive():
        return {name for name, ref in held.items() if ref() is not None}

    stage = Stage(module)
    (y,) = stage.forward(0, (leaf(4, 8),))
    output = weakref.ref(y)
    del y
    assert output() is None
    assert alive() == {"first", "second"}
    stage.input_grad(0, (torch.ones(4, 8),))
    assert alive() == set()
    stage.weight_grad(0)
    stage.forward(1, (leaf(4, 8),))
    assert alive() == {"first", "second"}
    stage.discard()
    assert alive() == set()


def test_what_weight_gradients_need_lives_until_they_are_computed():
    saved = []

    def forward(m, a):
        h = m.a(a).sin()
        saved.append(weakref.ref(h))
        return m.b(h)

    stage = Stage(Fn(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    x = leaf(4, 8)
    stage.forward(0, (x,))
    grad = torch.ones(4, 8)
    stage.input_grad(0, (grad,))
    refs = [weakref.ref(x), weakref.ref(grad)]
    del x, grad
    assert refs[1]() is not None
    stage.weight_grad(0)
    assert [ref() for ref in refs] == [None, None]
    assert saved[0]() is None


def test_activation_bytes_follow_the_ops():
    one = 1000 * 8 * 4
    mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8, bias=False), nn.Tanh())
    for module, after_forward, after_input_grad in (
        (mlp, 4 * one, 4 * one),  # x, GELU's input and output, Tanh's output; then x, GELU's output, two gradients
        (nn.LayerNorm(8), one + 2 * 4000, 2 * 8 * 4),  # x, means and deviations; then the two gradients themselves
    ):
        stage = Stage(module)
        for microbatch in range(2):
            stage.forward(microbatch, (leaf(1000, 8),))
            assert stage.activation_bytes == after_forward * (microbatch + 1)
        stage.input_grad(1, (torch.randn(1000, 8),))
        assert stage.activation_bytes == after_forward + after_input_grad
        stage.weight_grad(1)
        stage.forward(2, (leaf(500, 8),))
        assert stage.activation_bytes == after_forward * 3 // 2
        stage.backward(0, (torch.randn(1000, 8),))
        stage.backward(2, (torch.randn(500, 8),))
        assert stage.activation_bytes == 0


def test_a_recomputing_stage_holds_only_its_inputs():
    one, random_state = 1000 * 8 * 4, torch.get_rng_state().nbytes
    stage = Stage(dropped_out(), recompute=True)
    stage.forward(0, (leaf(1000, 8),))
    assert stage.activation_bytes == one + random_state
    stage.recompute(0)
    assert stage.activation_bytes > 3 * one
    stage.input_grad(0, (torch.randn(1000, 8),))
    stage.weight_grad(0)
    assert stage.activation_bytes == 0


@pytest.mark.parametrize("kinds", ["RB", "B", "RIW", "IW"])
@pytest.mark.parametrize("recompute", [True, ["0"], ["1.0", "2"]])
def test_recomputation_draws_the_same_random_numbers(recompute, kinds):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), dropped_out(), nn.Dropout(0.5))

    results = []
    for options in ({}, {"recompute": recompute}):
        stage = Stage(build(), **options)
        x = torch.linspace(-1, 1, 32).view(4, 8).requires_grad_()
        torch.manual_seed(1)
        y, result = run(stage, 0, kinds if options.get("recompute") is True else kinds.replace("R", ""), x)
        results.append([y, result, *(p.grad for p in stage.module.parameters()), torch.rand(3)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kinds", ["B", "IW"])
def test_a_checkpointed_submodule_runs_once_more(kinds):
    calls = []
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[0].register_forward_pre_hook(lambda *_: calls.append(0))
    inner = module[1].forward
    module[1].forward = lambda x: calls.append(1) or inner(x)
    run(Stage(module, recompute=["1"]), 0, kinds, leaf(2, 8))
    assert calls == [0, 1, 1]


@pytest.mark.parametrize("names", [["1", "block"], ["0.weight"], [""]])
def test_an_unknown_submodule_is_refused(names):
    with pytest.raises(ConfigError, match="no submodule"):
        Stage(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), recompute=names)


def test_a_misspelt_submodule_gets_a_hint_and_a_bare_string_is_refused():
    module = nn.Sequential()
    module.add_module("attention", nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        Stage(module, recompute=["atention"])
    with pytest.raises(ConfigError, match="'attention'"):
        Stage(module, recompute="attention")


@pytest.mark.parametrize("kinds", ["B", "IW"])
def test_main_gradients_take_the_gradient_of_each_op(kinds):
    torch.manual_seed(0)
    module = nn.Linear(8, 8).bfloat16()
    stage = Stage(module, main_grad_dtype=torch.float32)
    expected = 0
    for microbatch in range(3):
        x = torch.randn(4, 8, dtype=torch.bfloat16).requires_grad_()
        expected = expected + torch.autograd.grad(module(x), module.weight, torch.ones(4, 8).bfloat16())[0].float()
        run(stage, microbatch, kinds, x)
        assert module.weight.grad is None
    assert module.weight.main_grad.dtype == torch.float32
    assert torch.equal(module.weight.main_grad, expected)


def test_forward_only_keeps_nothing_and_shares_no_memory():
    stage = Stage(Fn(lambda m, a: (m.a(a), a, a.view(-1)[:3]), a=nn.Linear(8, 8)))
    x = leaf(2, 8)
    y, same, view = stage.forward_only(0, (x,))
    assert stage.activation_bytes == 0
    assert not any(t.requires_grad for t in (y, same, view))
    x.data.zero_()
    assert same.abs().sum() > 0
    assert view.abs().sum() > 0


def test_ops_out_of_turn_are_refused():
    stage = Stage(nn.Linear(8, 8))
    grad = torch.ones(2, 8)
    for op in (
        lambda: stage.backward(0, (grad,)),
        lambda: stage.input_grad(0, (grad,)),
        lambda: stage.weight_grad(0),
        lambda: stage.recompute(0),
    ):
        with pytest.raises(ConfigError, match="microbatch 0"):
            op()
    stage.forward(0, (leaf(2, 8),))
    with pytest.raises(ConfigError, match="in flight"):
        stage.forward(0, (leaf(2, 8),))
    with pytest.raises(ConfigError, match="no forward to recompute"):
        stage.recompute(0)
    with pytest.raises(ConfigError, match="1 outputs need a gradient, 2 gradients came"):
        stage.backward(0, (grad, grad))
    stage.discard()
    stage.forward(0, (leaf(2, 8),))
    stage.input_grad(0, (grad,))
    with pytest.raises(ConfigError, match="in flight"):
        stage.forward(0, (leaf(2, 8),))


def test_a_module_that_returns_no_tensors_is_refused():
    with pytest.raises(ConfigError, match="dict"):
        Stage(Fn(lambda m, a: {"a": a})).forward(0, (leaf(2),))


def test_a_saved_tensor_that_was_changed_is_noticed_as_in_any_backward():
    kept = []
    stage = Stage(Fn(lambda m, a: m.b(kept.append(h := m.a(a)) or h), a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    stage.forward(0, (leaf(2, 8),))
    kept[0].data.add_(0)
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        stage.input_grad(0, (torch.ones(2, 8),))
