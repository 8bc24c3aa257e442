"""The engine with all ranks in this process."""

import copy
import itertools
import json
import os
import signal

import pytest
import torch
from torch import nn

import pipert
from pipert import passes, schedules
from pipert.errors import ConfigError, LaneTimeout, PipertError, StageError
from pipert.ir import Op, Program

NUM_MICROBATCHES = 4
WIDTH = 6


def make_plan(schedule="1f1b", num_ranks=2):
    return pipert.compile(schedules.build(schedule, num_ranks=num_ranks, num_microbatches=NUM_MICROBATCHES))


def make_modules(num_stages):
    torch.manual_seed(1)
    return {stage: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for stage in range(num_stages)}


def squared_error(output, target):
    return (output - target).square().mean()


@pytest.fixture
def batch():
    torch.manual_seed(2)
    return torch.randn(9, WIDTH), torch.randn(9, WIDTH)


def naive(modules, batch, loss_fn=squared_error):
    """Gradients into the modules, the losses as a list."""
    losses = []
    for x, target in zip(*(part.tensor_split(NUM_MICROBATCHES) for part in batch), strict=True):
        for stage in sorted(modules):
            x = modules[stage](x)
        loss = loss_fn(x, target)
        (loss / NUM_MICROBATCHES).backward()
        losses.append(loss.item())
    return losses


def grads(modules):
    return [p.grad for stage in sorted(modules) for p in modules[stage].parameters()]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_step_leaves_the_gradients_and_the_callers_random_state(batch):
    plan = make_plan()
    modules = make_modules(2)
    expected = copy.deepcopy(modules)
    losses = naive(expected, batch)
    state = torch.get_rng_state()
    with pipert.Engine(plan, modules, squared_error) as engine, torch.no_grad():
        result = engine.step(*batch)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert result.losses.tolist() == losses
    assert result.loss == torch.tensor(losses).mean()
    assert result.grad_norm is None
    assert_same(grads(modules), grads(expected))


def test_two_steps_add_their_gradients_and_number_themselves(batch):
    modules = make_modules(2)
    expected = copy.deepcopy(modules)
    with pipert.Engine(make_plan(), modules, squared_error) as engine:
        assert [engine.step(*batch, accumulate=True).step, engine.step(*batch).step] == [0, 1]
        assert engine.num_steps == 2
    naive(expected, batch)
    naive(expected, batch)
    assert_same(grads(modules), grads(expected))


def test_without_a_seed_the_generators_are_drawn_from_in_the_order_of_the_forwards(batch):
    modules = {0: nn.Linear(WIDTH, WIDTH), 1: nn.Dropout(0.5)}
    torch.manual_seed(3)
    expected = naive(modules, batch)
    after = torch.get_rng_state()
    with pipert.Engine(make_plan(), modules, squared_error, seed=None) as engine:
        torch.manual_seed(3)
        assert engine.step(*batch).losses.tolist() == expected
        assert torch.equal(torch.get_rng_state(), after)


def test_random_numbers_follow_seed_and_step(batch):
    modules = {stage: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout()) for stage in range(2)}

    def losses(seed, num_steps):
        with pipert.Engine(make_plan(), modules, squared_error, seed=seed) as engine:
            engine.num_steps = num_steps
            return engine.step(*batch).losses.tolist()

    assert losses(1, 5) == losses(1, 5)
    assert losses(1, 5) != losses(1, 6)
    assert losses(1, 5) != losses(2, 5)


def test_the_trace_has_every_op_and_is_decoded_once(batch):
    plan = make_plan("zb-v")
    with pipert.Engine(plan, make_modules(4), squared_error) as engine:
        result = engine.step(*batch)
    assert list(result.trace.recorded()) == list(range(plan.num_ops))
    assert result.trace is result.trace


def test_eval_step_computes_the_loss_alone(batch):
    modules = make_modules(4)
    plan = make_plan("zb-v")
    with pipert.Engine(plan, modules, squared_error) as engine:
        evaluated = engine.eval_step(*batch)
        assert grads(modules) == [None] * 8
        assert evaluated.plan.num_ops < plan.num_ops
        assert list(evaluated.trace.recorded()) == list(range(evaluated.plan.num_ops))
        trained = engine.step(*batch)
        assert engine.num_steps == 1
    assert torch.equal(trained.losses, evaluated.losses)


def test_a_forward_only_plan_evaluates_and_does_not_train(batch):
    plan = pipert.compile(schedules.forward_only([(0, 1)], [0] * NUM_MICROBATCHES))
    with pipert.Engine(plan, make_modules(2), squared_error) as engine:
        assert engine.eval_step(*batch).losses.tolist() == naive(make_modules(2), batch)
        with pytest.raises(ConfigError, match="no backward"):
            engine.step(*batch)


def test_the_loss_over_tokens(batch):
    def summed(output, target):
        return (output - target).square().sum(), target.numel()

    modules = make_modules(2)
    expected = copy.deepcopy(modules)
    x, target = batch
    loss = squared_error(expected[1](expected[0](x)), target)
    loss.backward()
    with pipert.Engine(make_plan(), modules, summed, loss_reduction="token") as engine:
        result = engine.step(x, target)
    torch.testing.assert_close(result.loss, loss)
    for found, other in zip(grads(modules), grads(expected), strict=True):
        torch.testing.assert_close(found, other)


def test_an_overlapped_pair_runs_both_parts(batch):
    def one(text):
        return Op.parse(text)

    first = ["0F0", "0F1", "0F2", "(0F3;0B0)OVERLAP_F_B", "0B1", "0B2", "0B3"]
    second = ["1F0", "1B0", "(1F1;1B1)OVERLAP_F_B", "1F2", "1B2", "1F3", "1B3"]
    program = Program.single_path("pairs", (0, 1), NUM_MICROBATCHES, (tuple(map(one, first)), tuple(map(one, second))))
    modules = make_modules(2)
    expected = copy.deepcopy(modules)
    with pipert.Engine(pipert.compile(program), modules, squared_error) as engine:
        assert engine.step(*batch).losses.tolist() == naive(expected, batch)
    assert_same(grads(modules), grads(expected))


class PassOn(nn.Module):
    """Hands on what it is given, and adds a parameter of its shape to one of the copies."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2 * WIDTH))

    def forward(self, x, y):
        return x, y + self.shift.view(2, WIDTH)


class Ends(nn.Module):
    """First and last stage of a pipeline that mostly passes on."""

    def __init__(self, is_first):
        super().__init__()
        self.is_first = is_first
        self.scale = nn.Parameter(torch.ones(2, WIDTH))

    def forward(self, *inputs):
        if self.is_first:
            return inputs[0] * self.scale, inputs[0] * 2
        x, y = inputs
        return (x * y * self.scale).sum(-1)


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h1"])
def test_what_is_passed_on_outlives_the_slot_it_came_in(schedule):
    """Identity stages on neighbouring ranks, parameters whose gradient is a view of what arrived."""
    program = schedules.build(schedule, num_ranks=4, num_microbatches=16)
    modules = {0: Ends(True), 1: PassOn(), 2: PassOn(), 3: Ends(False)}
    parameters = [p for module in modules.values() for p in module.parameters()]
    inputs = [torch.randn(2, WIDTH) for _ in range(16)]
    targets = [torch.randn(2) for _ in range(16)]
    losses, sums = [], [torch.zeros_like(p) for p in parameters]
    for x, target in zip(inputs, targets, strict=True):
        loss = squared_error(modules[3](*modules[2](*modules[1](*modules[0](x)))), target)
        losses.append(loss.item())
        for total, grad in zip(sums, torch.autograd.grad(loss / 16, parameters), strict=True):
            total += grad
    with pipert.Engine(pipert.compile(program, recv_depth=1), modules, squared_error) as engine:
        assert engine.step(inputs, targets).losses.tolist() == losses
        assert_same(grads(modules), sums)
        assert engine.eval_step(inputs, targets).losses.tolist() == losses
        assert_same(grads(modules), sums)


def test_the_peak_counts_the_microbatches_in_flight():
    inputs, targets = [torch.randn(2, WIDTH)] * NUM_MICROBATCHES, [torch.randn(2, WIDTH)] * NUM_MICROBATCHES

    def peaks(schedule):
        with pipert.Engine(make_plan(schedule), make_modules(2), squared_error) as engine:
            first = engine.step(inputs, targets).peak_activation_bytes
            assert engine.step(inputs, targets).peak_activation_bytes == first
            assert engine.eval_step(inputs, targets).peak_activation_bytes == {0: 0, 1: 0}
            return first

    gpipe, one_f_one_b = peaks("gpipe"), peaks("1f1b")
    assert (gpipe[0], gpipe[1]) == (2 * one_f_one_b[0], 4 * one_f_one_b[1])
    kept = 2 * WIDTH * 4  # the output of the tanh; on rank 1 the received input besides
    assert one_f_one_b[1] == 2 * kept


def test_recomputation_where_the_plan_says_so(batch):
    program = passes.recompute(schedules.build("1f1b", num_ranks=2, num_microbatches=NUM_MICROBATCHES), [0])
    plan = pipert.compile(program)
    modules = make_modules(2)
    expected = copy.deepcopy(modules)
    with pipert.Engine(plan, modules, squared_error) as engine:
        recomputed = engine.step(*batch)
    assert recomputed.losses.tolist() == naive(expected, batch)
    assert_same(grads(modules), grads(expected))
    with pytest.raises(ConfigError, match="recomputes stage 0"):
        pipert.Engine(plan, {0: pipert.Stage(make_modules(1)[0]), 1: nn.Identity()}, squared_error)


def test_timed_stages_need_no_data_and_no_loss():
    plan = make_plan("zb-h1", 3)
    stages = {s: pipert.stages.Timed(F=0.1, I=0.1, W=0.1, stage=s, num_stages=3) for s in range(3)}
    with pipert.Engine(plan, stages) as engine:
        result = engine.step()
    assert (result.loss, result.losses) == (None, None)


class Broken(nn.Module):
    def __init__(self, in_backward):
        super().__init__()
        self.in_backward = in_backward

    def forward(self, x):
        if not self.in_backward:
            raise ZeroDivisionError("no such layer")
        y = x * 1
        y.register_hook(self.fail)
        return y

    def fail(self, grad):
        raise ZeroDivisionError("no such gradient")


@pytest.mark.parametrize(("in_backward", "op"), [(False, "1F0"), (True, "1B0")])
def test_a_stage_that_raises_ends_the_engine(in_backward, op, batch):
    modules = make_modules(2) | {1: Broken(in_backward)}
    engine = pipert.Engine(make_plan(), modules, squared_error)
    with pytest.raises(StageError, match=f"rank 1, {op}, step 0: ZeroDivisionError: no such") as raised:
        engine.step(*batch)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert (raised.value.rank, raised.value.op, raised.value.step) == (1, op, 0)
    with pytest.raises(PipertError, match="step 0 ended this engine"):
        engine.step(*batch)
    engine.close()
    with pipert.Engine(make_plan(), make_modules(2), squared_error) as engine:
        engine.step(*batch)


def test_a_loss_function_that_raises_is_named(batch):
    def broken(output, target):
        raise ZeroDivisionError("no such loss")

    with (
        pipert.Engine(make_plan(), make_modules(2), broken) as engine,
        pytest.raises(StageError, match="rank 1, 1F0, step 0: ZeroDivisionError"),
    ):
        engine.step(*batch)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named(bad, batch):
    x, target = batch
    target[5] = bad
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with (
        pipert.Engine(make_plan(), make_modules(2), squared_error, optimizer=optimizer) as engine,
        pytest.raises(PipertError, match=r"step 0: the loss of microbatch 2 is (nan|inf)"),
    ):
        engine.step(x, target)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([torch.ones(1, WIDTH)] * 3, None, "inputs: the plan has 4 microbatches, the list 3"),
        (torch.ones(3, WIDTH), None, "inputs: 3 rows cannot be cut into 4 microbatches"),
        (torch.ones(4, WIDTH), [1] * 5, "targets: the plan has 4 microbatches, the list 5"),
        (torch.ones(4, WIDTH, device="meta"), torch.ones(4), "inputs: .*meta"),
        (None, torch.ones(4), "inputs: stage 0 needs some"),
    ],
)
def test_data_that_does_not_fit_the_plan_is_refused_and_nothing_is_lost(inputs, targets, message, batch):
    with pipert.Engine(make_plan(), make_modules(2), squared_error) as engine:
        with pytest.raises(ConfigError, match=message):
            engine.step(inputs, targets)
        engine.step(*batch)


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ({0: nn.Identity()}, {}, "stages 0, 1 on ranks 0, 1 .*but stages 0 were given"),
        ({0: nn.Identity(), 1: nn.Identity(), 2: nn.Identity()}, {}, "plan for other ranks"),
        ({0: nn.Identity(), 1: torch.ones(1)}, {}, "stage 1 is a Tensor"),
        (dict.fromkeys((0, 1), nn.Linear(2, 2)), {}, "stages 0 and 1 share the parameter 'weight'"),
        ({0: nn.Identity(), 1: nn.Linear(2, 2, device="meta")}, {}, "stage 1: weight is on meta"),
        ({0: nn.Identity(), 1: nn.Identity()}, {"loss_reduction": "sum"}, "'sum'"),
        ({0: nn.Identity(), 1: nn.Identity()}, {"loss_fn": None}, "loss_fn is needed on rank 1"),
        ({0: nn.Identity(), 1: nn.Identity()}, {"tied": [((0, "w"), (1, "w"))]}, "no parameter 'w'"),
        ({0: nn.Identity(), 1: nn.Identity()}, {"clip_norm": 1.0}, "needs an optimizer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_once(stages, options, message):
    with pytest.raises(ConfigError, match=message):
        pipert.Engine(make_plan(), stages, **{"loss_fn": squared_error, **options})


def test_a_closed_engine_says_so(batch):
    engine = pipert.Engine(make_plan(), make_modules(2), squared_error)
    engine.close()
    engine.close()
    with pytest.raises(PipertError, match="closed"):
        engine.step(*batch)


def test_the_dump_shows_every_lane(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("PIPERT_DUMP_DIR", str(tmp_path / "dumps"))
    with pipert.Engine(make_plan(), make_modules(2), squared_error) as engine:
        engine.step(*batch)
        os.kill(os.getpid(), signal.SIGUSR1)
        (path,) = (tmp_path / "dumps").iterdir()
        about = json.loads(path.read_text())
        assert engine.dump(tmp_path / "mine") == tmp_path / "mine"
        assert json.loads((tmp_path / "mine").read_text())["status"] == about["status"]
    assert (about["ranks"], about["step"], about["plan"]) == ([0, 1], 1, "1f1b")
    assert any("rank 1 compute" in line for line in about["status"]["step"])


def test_a_dump_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch, batch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPERT_DUMP_DIR", str(tmp_path / "file"))

    def timed_out(output, target):
        raise LaneTimeout("too late")

    with (
        pipert.Engine(make_plan(), make_modules(2), timed_out) as engine,
        pytest.raises(LaneTimeout, match=r"too late; .* could not be written"),
    ):
        engine.step(*batch)


def test_slower_links_hold_messages_back(batch):
    plan, modules = make_plan(), make_modules(2)
    expected = copy.deepcopy(modules)
    losses = naive(expected, batch)
    with pipert.Engine(plan, modules, squared_error, link_delays_ms={(0, 1): (3, 2)}) as engine:
        result = engine.step(*batch)
    assert result.losses.tolist() == losses
    assert_same(grads(modules), grads(expected))
    trace, rows = result.trace, {text: row for row, text in enumerate(plan.op_text)}
    for microbatch in range(NUM_MICROBATCHES):
        sent, received = rows[f"0SEND_F{microbatch}"], rows[f"1RECV_F{microbatch}"]
        assert trace.end[received] >= trace.end[sent] + 5e6
        assert trace.start[rows[f"1F{microbatch}"]] >= trace.end[received]
    arrivals = [trace.end[rows[f"1RECV_F{microbatch}"]] for microbatch in range(NUM_MICROBATCHES)]
    assert all(later >= earlier + 2e6 for earlier, later in itertools.pairwise(arrivals))


@pytest.mark.parametrize("delay", [(-1, 0), (0, -1)])
def test_negative_delays_are_refused(delay):
    with pytest.raises(ConfigError, match="must not be negative"):
        pipert.Engine(make_plan(), make_modules(2), squared_error, link_delays_ms={(0, 1): delay})
