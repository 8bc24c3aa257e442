"""The split backward of Python functions (``torch.autograd.Function``) that have a rule."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import Fn, Scale, param

from pipert.stages import Stage, boundaries
from pipert.stages.boundaries import FunctionRule, add_function_rule, saved_by_function
from pipert.stages.graph import gradient_edge
from pipert.stages.split import input_grads

CALLS = []
"""What was computed, in order."""


class Linear(torch.autograd.Function):
    """``x @ weight.t() + bias`` by hand; the backward computes everything."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        ctx.scale = scale
        y = x @ weight.t() * scale
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, grad):
        CALLS.append("all")
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum(0) if ctx.has_bias else None
        return grad * ctx.scale @ weight, (grad * ctx.scale).t() @ x, grad_bias, None


class LinearInputGrad(torch.autograd.Function):
    @staticmethod
    def backward(ctx, grad):
        CALLS.append("input")
        return grad * ctx.scale @ ctx.saved_tensors[1], None, None, None


def bind(node, edge):
    saved = saved_by_function(node)
    if saved is None:
        return None
    return (bias_grad, None) if edge == 2 else (partial(weight_grad, node.scale), saved[0].detach())


def weight_grad(scale, x, grad):
    CALLS.append("weight")
    return (grad * scale).t() @ x


def bias_grad(saved, grad):
    CALLS.append("bias")
    return grad.sum(0)


def leave_out(node):
    node._forward_cls = LinearInputGrad


@pytest.fixture(autouse=True)
def rule(monkeypatch):
    monkeypatch.setattr(boundaries, "FUNCTION_RULES", dict(boundaries.FUNCTION_RULES))
    monkeypatch.setattr("pipert.stages.split.FUNCTION_RULES", boundaries.FUNCTION_RULES)
    add_function_rule(Linear, FunctionRule((1, 2), bind, leave_out))
    CALLS.clear()


def linear(x, weight, bias=None):
    return Linear.apply(x, weight, bias, 0.5)


def frozen(tensor):
    return tensor.requires_grad_(False)


def mixed_uses(m, a):
    """Three contributions to one weight, one of them through a transpose."""
    return F.linear(linear(linear(a, m.w).sin(), m.w), m.w.t()).cos() + a


WHERE = {
    "with-bias": (lambda: Fn(lambda m, a: linear(a, m.w, m.b), w=param(8, 8), b=param(8)), "input", "weight bias"),
    "no-bias": (lambda: Fn(lambda m, a: linear(a, m.w), w=param(8, 8)), "input", "weight"),
    "frozen-bias": (
        lambda: Fn(lambda m, a: linear(a, m.w, m.b), w=param(8, 8), b=frozen(param(8))), "input", "weight",
    ),
    "frozen-weight": (
        lambda: Fn(lambda m, a: linear(a, m.w, m.b), w=frozen(param(8, 8)), b=param(8)), "input", "bias",
    ),
    "two": (
        lambda: Fn(lambda m, a: linear(linear(a, m.v, m.b).relu(), m.w), v=param(8, 8), w=param(8, 8), b=param(8)),
        "input input", "weight weight bias",
    ),
    "twice": (
        lambda: Fn(lambda m, a: linear(linear(a, m.w, m.b).relu(), m.w, m.b), w=param(8, 8), b=param(8)),
        "input input", "weight bias weight bias",
    ),
    "four-times": (
        lambda: Fn(lambda m, a: linear(linear(linear(linear(a, m.w).sin(), m.w).sin(), m.w) + a, m.w), w=param(8, 8)),
        "input input input input", "weight weight weight weight",
    ),
    "shared-with-torch": (
        lambda: Fn(lambda m, a: F.linear(linear(a, m.w).sin(), m.w), w=param(8, 8)), "input", "weight",
    ),
    "shared-three-ways": (lambda: Fn(mixed_uses, w=param(8, 8)), "all all", ""),
    "bias-of-another-kind": (  # the bias cannot be left to W, so the weight is not, either
        lambda: Fn(lambda m, a: linear(Scale.apply(a, m.b), m.w, m.b), w=param(8, 8), b=param(8)), "all", "",
    ),
    "weight-from-weights": (
        lambda: Fn(lambda m, a: linear(a, m.u @ m.v), u=param(8, 2), v=param(2, 8)), "input", "weight",
    ),
    "weight-is-activation": (lambda: Fn(lambda m, a: linear(a, a @ m.w, m.b), w=param(8, 8), b=param(8)), "all", ""),
    "input-is-parameter": (lambda: Fn(lambda m, a: linear(m.w, m.v) @ a, w=param(8, 8), v=param(8, 8)), "all", ""),
    "checkpointed": (
        lambda: Fn(lambda m, a: checkpoint(linear, a, m.w, use_reentrant=False), w=param(8, 8)), "all", "",
    ),
    "output-unused": (
        lambda: Fn(lambda m, a: (linear(a, m.w), linear(a, m.v))[0], w=param(8, 8), v=param(8, 8)), "input", "weight",
    ),
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    return WHERE[name][0](), torch.randn(8, 8), torch.randn(8, 8)


def results(name, kinds, hooked=False):
    module, x, grad = made(name)
    parameters = [p for p in module.parameters() if p.requires_grad]
    calls = {}
    stage = Stage(module)
    inputs = []
    for microbatch in range(2):
        leaf = (x + microbatch).requires_grad_()
        CALLS.clear()
        stage.forward(microbatch, (leaf,))
        if hooked:
            torch.zeros(1, requires_grad=True).register_hook(torch.neg)  # so that hooks are expected everywhere
        if kinds == "B":
            inputs += stage.backward(microbatch, (grad,))
        else:
            inputs += stage.input_grad(microbatch, (grad,))
            calls["I"] = " ".join(CALLS)
            if microbatch == 0:
                assert all(p.grad is None for p in parameters)
            CALLS.clear()
            stage.weight_grad(microbatch)
            calls["W"] = " ".join(CALLS)
    assert stage.activation_bytes == 0
    return inputs, [p.grad for p in parameters], calls


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", WHERE)
def test_it_has_the_bits_of_a_full_backward_and_computes_nothing_twice(name, hooked):
    expected_inputs, expected, _ = results(name, "B")
    inputs, grads, calls = results(name, "IW", hooked)
    assert all(torch.equal(a, b) for a, b in zip(inputs, expected_inputs, strict=True))
    for grad, other in zip(grads, expected, strict=True):
        assert (grad is None) == (other is None)
        assert grad is None or torch.equal(grad, other)
    in_first, in_second = WHERE[name][1:]
    assert (calls["I"], sorted(calls["W"].split())) == (in_first, sorted(in_second.split()))


def test_data_that_needs_no_gradient_is_not_even_run():
    weight, x = param(8, 8), torch.randn(8, 8)
    y = linear(x, weight)
    arrived, rest = input_grads([gradient_edge(y)], [torch.ones(8, 8)], [])
    assert (arrived, CALLS, weight.grad) == ((), [], None)
    rest.run()
    assert CALLS == ["weight"]
    assert torch.equal(weight.grad, (torch.ones(8, 8) * 0.5).t() @ x)


def test_a_gradient_that_itself_requires_one_leaves_no_graph():
    class Saved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return ctx.saved_tensors[0]

    weight, x = param(8, 8), torch.randn(4, 8, requires_grad=True)
    grads = []
    for function in (linear, F.linear):
        y = function(x, weight)
        other = y.detach().requires_grad_()
        grads.append(torch.autograd.grad(Saved.apply(other), other, torch.ones(4, 8))[0])
        assert grads[-1].requires_grad
        _, rest = input_grads([gradient_edge(y)], [grads[-1]], [x])
        weight.grad = None
        rest.run()
        assert not weight.grad.requires_grad


def test_what_is_kept_between_the_parts():
    weight, x = param(8, 8), torch.randn(4, 8, requires_grad=True)
    y = linear(x.sin(), weight).exp()
    _, rest = input_grads([gradient_edge(y)], [torch.ones(4, 8)], [x])
    del y
    assert rest.held_bytes([weight]) == 2 * 4 * 8 * 4  # the input and the gradient of the output


def test_hooks_run_once_after_the_gradient_was_added():
    weight, bias, norm = param(8, 8), param(8), param(8)
    x = torch.randn(4, 8, requires_grad=True)
    seen = []
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in (weight, bias, norm)]
    for node, p in zip(nodes, (weight, bias, norm), strict=True):
        node.register_hook(lambda *unused, p=p: seen.append((p, p.grad is not None)))
    y = Scale.apply(linear(x, weight, bias), norm)
    _, rest = input_grads([gradient_edge(y)], [torch.ones(4, 8)], [x])
    assert len(rest.ready) == 1
    assert seen == []
    rest.run()
    assert [has_grad for _, has_grad in seen] == [True] * 3
    assert {id(p) for p, _ in seen} == {id(weight), id(bias), id(norm)}


def test_a_formula_may_go_its_own_way():
    main = torch.zeros(8, 8)

    def add_to_main(x, grad):
        main.add_(grad.t() @ x)

    add_function_rule(Linear, FunctionRule((1, 2), lambda node, edge: (add_to_main, node.saved_tensors[0]), leave_out))
    weight, x = param(8, 8), torch.randn(4, 8, requires_grad=True)
    _, rest = input_grads([gradient_edge(linear(x, weight))], [torch.ones(4, 8)], [x])
    rest.run()
    assert weight.grad is None
    assert torch.equal(main, torch.ones(4, 8).t() @ x)


@pytest.mark.parametrize("name", WHERE)
def test_in_pieces_it_has_the_same_bits(name):
    grads = []
    for run in ("run", "run_in_pieces"):
        module, x, grad = made(name)
        x.requires_grad_()
        _, rest = input_grads([gradient_edge(module(x))], [grad], [x])
        getattr(rest, run)()
        grads.append([p.grad for p in module.parameters() if p.grad is not None])
    assert grads[0]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_in_pieces_gradients_that_hooks_take_away_do_not_gather():
    weights = [param(8, 8) for _ in range(4)]
    alive, most = set(), []

    def take_away(p):
        alive.remove(id(p))
        most.append(len(alive))

    for w in weights:
        w.register_post_accumulate_grad_hook(take_away)
    y = x = torch.randn(4, 8, requires_grad=True)
    for w in weights:
        y = linear(y, w).sin()

    def noting(formula, w):
        def run(*args):
            alive.add(id(w))
            return formula(*args)

        return run

    _, rest = input_grads([gradient_edge(y)], [torch.ones(4, 8)], [x])
    order = []
    for _, targets in rest.split:
        for index, (edge, (formula, saved)) in enumerate(targets):
            order.append(edge[0].variable)
            targets[index] = edge, (noting(formula, edge[0].variable), saved)
    assert [id(w) for w in order] == [id(w) for w in reversed(weights)]
    rest.run_in_pieces()
    assert most == [0, 0, 0, 0]
    assert rest.split == rest.ready == []


def test_a_module_with_a_function_that_has_no_rule_is_as_before():
    boundaries.FUNCTION_RULES.clear()
    x = torch.randn(4, 8, requires_grad=True)
    module = nn.Sequential(nn.Linear(8, 8), Fn(lambda m, a: linear(a, m.w), w=param(8, 8)))
    _, rest = input_grads([gradient_edge(module(x))], [torch.ones(4, 8)], [x])
    assert CALLS == ["all"]
    assert [edge.node.variable for edge, _ in rest.ready] == [module[1].w]
