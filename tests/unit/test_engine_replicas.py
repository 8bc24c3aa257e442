"""Stages on several ranks: the engine and the reference against loops written out, all ranks in this process."""

import copy
import re

import pytest
import torch
from random_plans import random_plans
from torch import nn

import pipert
from pipert import Program
from pipert.errors import ConfigError
from pipert.ir import Op

WIDTH = 4


def program(paths, num_microbatches):
    """Every microbatch forward, then every microbatch backward, from path to path in turn; W apart, in reverse."""
    path_of = tuple(microbatch % len(paths) for microbatch in range(num_microbatches))
    ranks = [[] for _ in range(1 + max(map(max, paths)))]
    stages = range(len(paths[0]))
    texts = [f"{stage}F{mb}" for mb in range(num_microbatches) for stage in stages]
    texts += [f"{stage}I{mb}" for mb in range(num_microbatches) for stage in reversed(stages)]
    texts += [f"{stage}W{mb}" for mb in reversed(range(num_microbatches)) for stage in stages]
    for op in map(Op.parse, texts):
        ranks[paths[path_of[op.microbatch]][op.stage]].append(op)
    return Program("two-way", tuple(paths), path_of, tuple(map(tuple, ranks)))


CHIMERA_3 = pipert.compile(program([(0, 1, 2), (2, 1, 0)], 5))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.shared = nn.Parameter(torch.eye(WIDTH) + 0.1)

    def forward(self, x):
        return torch.tanh(self.linear(x)) @ self.shared


def make_modules(plan):
    """One module for each (rank, stage); replicas start alike."""
    torch.manual_seed(7)
    originals = [Block() for _ in range(plan.num_stages)]
    return {
        (rank, stage): copy.deepcopy(originals[stage]) for rank in range(plan.num_ranks) for stage in plan.chunks(rank)
    }


def make_batch(plan):
    torch.manual_seed(8)
    shapes = [(1 + microbatch % 3, WIDTH) for microbatch in range(plan.num_microbatches)]
    return [torch.randn(shape) for shape in shapes], [torch.randn(shape) for shape in shapes]


def squared_error(output, target):
    return (output - target).square().mean()


def error_and_size(output, target):
    return (output - target).square().sum(), torch.tensor(target.numel())


def gradients(modules):
    return {(*key, name): p.grad for key, module in modules.items() for name, p in module.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert (value is None) == (expected[key] is None), key
        assert value is None or torch.equal(value, expected[key]), key


def backwards_in_order(plan):
    """(rank, stage) → its microbatches in the order in which the plan's text computes their weight gradients."""
    order = {}
    for op_id, text in enumerate(plan.op_text):
        for stage, microbatch in re.findall(
            r"(\d+)[BW](\d+)(?!\d)", text if "RECV" not in text and "SEND" not in text else ""
        ):
            rank = plan.lanes[plan.op_lane[op_id]].rank
            order.setdefault((rank, int(stage)), []).append(int(microbatch))
    return order


def by_hand(plan, modules, inputs, targets, tied=()):
    """Each replica's microbatches in the plan's order, then replicas and ties in the order of (rank, stage)."""
    losses, grads = [], {}
    for microbatch, (x, target) in enumerate(zip(inputs, targets, strict=True)):
        path = plan.paths[plan.path_of[microbatch]]
        for stage, rank in enumerate(path):
            x = modules[rank, stage](x)
        loss = squared_error(x, target)
        losses.append(loss.detach())
        (loss / plan.num_microbatches).backward()
        for stage, rank in enumerate(path):
            for name, parameter in modules[rank, stage].named_parameters():
                grads[rank, stage, name, microbatch] = parameter.grad
                parameter.grad = None
    for (rank, stage), microbatches in backwards_in_order(plan).items():
        for name, parameter in modules[rank, stage].named_parameters():
            for microbatch in microbatches:
                grad = grads[rank, stage, name, microbatch]
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    groups = {}
    for rank, stage in sorted(modules):
        for name in dict(modules[rank, stage].named_parameters()):
            tie = next((tie for tie in tied if (stage, name) in tie), (stage, name))
            groups.setdefault(tie, []).append(modules[rank, stage].get_parameter(name))
    for copies in groups.values():
        total = None
        for grad in [parameter.grad for parameter in copies if parameter.grad is not None]:
            total = grad if total is None else total + grad
        for parameter in copies:
            parameter.grad = total
    return torch.stack(losses)


@pytest.mark.parametrize(
    "plan", random_plans(seed=5, count=40), ids=lambda plan: f"{plan.num_ranks}x{plan.num_microbatches}"
)
def test_random_plans_compute_what_a_loop_computes(plan):
    modules, expected, checked = make_modules(plan), make_modules(plan), make_modules(plan)
    inputs, targets = make_batch(plan)
    last = plan.num_stages - 1
    tied = [((0, "shared"), (last, "shared"))] if last else []
    losses = by_hand(plan, expected, inputs, targets, tied)
    reference = pipert.reference_step(plan, checked, inputs, targets, squared_error, tied=tied)
    with pipert.Engine(plan, modules, squared_error, tied=tied) as engine:
        result = engine.step(inputs, targets)
        evaluated = engine.eval_step(inputs, targets)
    assert torch.equal(result.losses, losses)
    assert torch.equal(evaluated.losses, losses)
    assert torch.equal(result.loss, losses.sum() / len(losses))
    assert torch.equal(reference.losses, losses)
    assert_same(gradients(checked), gradients(expected))
    assert_same(gradients(modules), gradients(expected))


def test_the_random_plans_have_replicas():
    plans = random_plans(seed=5, count=40)
    assert sum(any(len(plan.holders(stage)) > 1 for stage in range(plan.num_stages)) for plan in plans) > 10
    through_both = [
        plan for plan in plans
        for rank in range(plan.num_ranks)
        for stage in plan.chunks(rank)
        if len({plan.path_of[mb] for mb in range(plan.num_microbatches) if plan.rank_of_stage(stage, mb) == rank}) > 1
    ]  # fmt: skip
    assert len(through_both) > 5


@pytest.mark.parametrize("loss_reduction", ["microbatch", "token"])
@pytest.mark.parametrize("main_grad_dtype", [None, torch.float64])
def test_accumulated_steps_with_ties_main_gradients_and_clipping(loss_reduction, main_grad_dtype):
    plan = CHIMERA_3
    loss_fn = squared_error if loss_reduction == "microbatch" else error_and_size
    inputs, targets = make_batch(plan)
    modules, expected = make_modules(plan), make_modules(plan)
    options = {"tied": [((0, "shared"), (2, "shared"))], "loss_reduction": loss_reduction, "clip_norm": 0.05}
    stages = {key: pipert.Stage(module, main_grad_dtype=main_grad_dtype) for key, module in modules.items()}
    seen = {}

    class Recording:
        def step(self):
            for key, module in modules.items():
                for name, p in module.named_parameters():
                    seen[(*key, name)] = (p.grad if main_grad_dtype is None else p.main_grad).clone()

        def zero_grad(self):
            for module in modules.values():
                module.zero_grad()

    num_tokens = 0
    with pipert.Engine(plan, stages, loss_fn, optimizer=Recording(), **options) as engine:
        for step, accumulate in enumerate((True, False)):
            result = engine.step(inputs, targets, accumulate=accumulate)
            reference = pipert.reference_step(
                plan, expected, inputs, targets, loss_fn, step=step, main_grad_dtype=main_grad_dtype,
                accumulate=accumulate, num_tokens=num_tokens, **options,
            )  # fmt: skip
            num_tokens = reference.num_tokens
            assert torch.equal(result.losses, reference.losses)
            assert bool(seen) is not accumulate
    assert torch.equal(result.grad_norm, reference.grad_norm)
    assert reference.grad_norm > 0.05
    attribute = "grad" if main_grad_dtype is None else "main_grad"
    grads = {(*k, n): getattr(p, attribute) for k, m in expected.items() for n, p in m.named_parameters()}
    assert_same(seen, grads)
    for (rank, stage, name), grad in seen.items():
        twin = seen[plan.holders(stage)[0], stage, name]
        assert torch.equal(grad, twin), (rank, stage, name)
    distinct = [
        g
        for (rank, stage, name), g in seen.items()
        if rank == plan.holders(stage)[0] and (stage, name) != (2, "shared")
    ]
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in distinct])) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("main_grad_dtype", [None, torch.float64])
def test_a_replica_that_no_microbatch_visits_gets_the_gradients(main_grad_dtype):
    plan = pipert.compile(program([(0, 1), (1, 0)], 1))
    inputs, targets = make_batch(plan)
    modules, expected = make_modules(plan), make_modules(plan)
    pipert.reference_step(plan, expected, inputs, targets, squared_error, main_grad_dtype=main_grad_dtype)
    stages = {key: pipert.Stage(module, main_grad_dtype=main_grad_dtype) for key, module in modules.items()}
    with pipert.Engine(plan, stages, squared_error) as engine:
        engine.step(inputs, targets)
    for key, module in modules.items():
        for ours, theirs in zip(module.parameters(), expected[key].parameters(), strict=True):
            ours, theirs = (p.grad if main_grad_dtype is None else p.main_grad for p in (ours, theirs))
            assert ours.any()
            assert torch.equal(ours, theirs)


def test_an_optimizer_keeps_replicas_alike():
    modules = make_modules(CHIMERA_3)
    inputs, targets = make_batch(CHIMERA_3)
    optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.1)
    with pipert.Engine(CHIMERA_3, modules, squared_error, optimizer=optimizer, clip_norm=1.0) as engine:
        losses = [engine.step(inputs, targets).loss.item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert_same(modules[0, 0].state_dict(), modules[2, 0].state_dict())
    assert_same(modules[0, 2].state_dict(), modules[2, 2].state_dict())


def test_timed_stages_may_have_replicas():
    stages = {
        (rank, stage): pipert.stages.Timed(F=0, I=0, W=0, stage=stage, num_stages=3)
        for rank in range(3)
        for stage in CHIMERA_3.chunks(rank)
    }
    with pipert.Engine(CHIMERA_3, stages) as engine:
        assert engine.step().losses is None


def one_changed(modules):
    with torch.no_grad():
        modules[2, 0].linear.bias[1] += 1
    return modules


def one_without_bias(modules):
    modules[2, 0].linear = nn.Linear(WIDTH, WIDTH, bias=False)
    return modules


def one_frozen(modules):
    modules[2, 0].shared.requires_grad_(False)
    return modules


def one_module_twice(modules):
    return {**modules, (2, 0): modules[0, 0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda modules: {0: modules[0, 0], 1: modules[1, 1], 2: modules[2, 2]},
            r"stage 0 stands on ranks 0, 2.*\(0, 0\)",
        ),
        (
            lambda modules: {k: v for k, v in modules.items() if k != (2, 0)},
            r"stages \(0, 0\), \(2, 0\), 1, .* were given",
        ),
        (lambda modules: {**modules, 1: Block()}, "were given"),
        (lambda modules: {**modules, (1, 0): Block()}, "were given"),
        (one_module_twice, "stage 0 has one parameter 'shared' for ranks 0 and 2"),
        (one_changed, "replicas of stage 0 on ranks 0 and 2 differ in the parameter 'linear.bias'"),
        (one_without_bias, "replicas of stage 0 .* differ in the parameter 'linear.bias'|'linear.weight'"),
        (one_frozen, "replicas of stage 0 .* differ in the parameter 'shared'"),
    ],
)
def test_replicas_that_do_not_match_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        pipert.Engine(CHIMERA_3, change(make_modules(CHIMERA_3)), squared_error)


def test_a_stage_on_one_rank_keeps_its_plain_number():
    modules = make_modules(CHIMERA_3)
    middle = modules.pop((1, 1))
    pipert.Engine(CHIMERA_3, {**modules, 1: middle}, squared_error).close()
