"""What an engine on a device does beside computing: run by test_device_engine.py, each function in its own process."""

import copy
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import pipert
from pipert.errors import ConfigError, PeerLost, StageError

sys.path.append(str(Path(__file__).parents[1]))
from split_models import Model, one_by_one, whole


def make(schedule="1f1b", num_ranks=2, **options):
    plan = pipert.compile(pipert.schedules.build(schedule, num_ranks=num_ranks, num_microbatches=4))
    torch.manual_seed(3)
    modules = {stage: nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for stage in range(plan.num_stages)}
    return plan, modules, pipert.Engine(plan, modules, nn.functional.mse_loss, **options)


def device():
    from pipert.engine import engine

    return engine.device_of({})


def raises(kind, text, call):
    with pytest.raises(kind, match=re.escape(text)) as raised:
        call()
    return raised.value


def refusals():
    _, _, engine = make()
    raises(ConfigError, "link_delays_ms", lambda: make(link_delays_ms={(0, 1): (1.0, 1.0)}))
    raises(ConfigError, "transport='shm' is for host memory", lambda: make(transport="shm"))
    raises(ConfigError, "transport is one of", lambda: make(transport="pigeon"))
    raises(ConfigError, "True, False or 'op'", lambda: make(cuda_graph="all"))
    first = engine.step(torch.randn(8, 4), torch.randn(8, 4))
    engine.step(torch.randn(8, 4), torch.randn(8, 4))
    raises(ConfigError, "before the next step", lambda: first.trace)
    untraced = make(trace=False)[2].step(torch.randn(8, 4), torch.randn(8, 4))
    assert untraced.records == b""


def split_vocabulary():
    """A step with S and T on the stand-in for a device computes what the unsplit model does."""
    plan = pipert.compile(one_by_one(3, 4, 2))
    model = Model(29, 6, 3, tied=False, dtype=torch.float32)
    stages, shards = model.stages(), model.shards(3)
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(29, (8, 5), generator=generator) for _ in range(2))
    raises(ConfigError, "cuda_graph", lambda: pipert.Engine(plan, stages, vocabulary=shards, cuda_graph=True))
    with pipert.Engine(plan, stages, vocabulary=shards) as engine:
        result = engine.step(tokens, targets)
        assert list(result.trace.recorded()) == list(range(plan.num_ops))
    loss = torch.stack([model.loss(*piece) for piece in zip(tokens.chunk(4), targets.chunk(4), strict=True)]).mean()
    loss.backward()
    assert abs(float(result.loss - loss)) < 1e-5
    for name in ("embedding", "output"):
        expected = getattr(model, name).grad
        assert (whole(shards, name, grad=True) - expected).norm() < 1e-5 * expected.norm()


def traces():
    plan, _, engine = make("zb-v", 3)
    result = engine.step(torch.randn(8, 4), torch.randn(8, 4))
    engine.close()
    assert list(result.trace.recorded()) == list(range(plan.num_ops))  # read at the last moment
    figures = pipert.trace.measure(result.trace)
    assert 0 < figures.makespan < 10e9
    assert 0 <= figures.bubble_rate < 1


def captured_steps():
    plan, modules, _ = make("zb-v", 2)
    twins = copy.deepcopy(modules)
    engines = []
    for stages, cuda_graph in ((modules, False), (twins, True)):
        parameters = [p for module in stages.values() for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        engines.append(pipert.Engine(plan, stages, nn.functional.mse_loss, optimizer=optimizer, cuda_graph=cuda_graph))
    device().parameters = parameters
    for _ in range(6):
        inputs, targets = torch.randn(8, 4), torch.randn(8, 4)
        eager, captured = (engine.step(inputs, targets) for engine in engines)
        assert torch.equal(eager.losses, captured.losses)
        assert torch.equal(eager.grad_norm, captured.grad_norm)
        assert list(captured.trace.recorded()) == list(range(plan.num_ops))
    for stage in modules:
        for ours, theirs in zip(modules[stage].parameters(), twins[stage].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    engine = engines[1]
    raises(ConfigError, "accumulate", lambda: engine.step(inputs, targets, accumulate=True))
    raises(
        ConfigError,
        "cannot run as one of [(2, 4)], as captured",
        lambda: engine.step(torch.randn(12, 4), torch.randn(12, 4)),
    )


def captured_ops():
    plan, modules, engine = make("1f1b", 2, cuda_graph="op")
    calls = []
    modules[1].register_forward_hook(lambda *_: calls.append(0))
    inputs, targets = torch.randn(8, 4), torch.randn(8, 4)

    def step():
        for module in modules.values():
            module.zero_grad()
        return engine.step(inputs, targets)

    results = [step() for _ in range(5)]
    assert len(calls) == 3 * plan.num_microbatches  # two steps to warm up, and the one that is captured
    assert all(torch.equal(result.losses, results[0].losses) for result in results)
    assert all(p.grad is not None for module in modules.values() for p in module.parameters())
    raises(ConfigError, "drop gradients", lambda: engine.step(inputs, targets))


def ops_that_draw_random_numbers():
    _, modules, engine = make("1f1b", 2, cuda_graph="op")
    modules[1].register_forward_hook(lambda *_: setattr(device(), "num_random", device().num_random + 4))
    error = raises(ConfigError, "1F0 draws random numbers", lambda: engine.step(torch.randn(8, 4), torch.randn(8, 4)))
    assert error.op == "1F0"


def a_handler_that_raises():
    def boom(module, inputs):
        raise ValueError("boom")

    _, modules, engine = make("zb-v", 2)
    modules[2].register_forward_pre_hook(boom)
    error = raises(StageError, "2F0", lambda: engine.step(torch.randn(8, 4), torch.randn(8, 4)))
    assert error.op == "2F0"
    assert isinstance(error.__cause__, ValueError)


def a_loss_that_is_not_finite():
    plan, modules, _ = make()
    parameters = [p for module in modules.values() for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    engine = pipert.Engine(plan, modules, lambda y, t: (y / 0).sum(), optimizer=torch.optim.SGD(parameters, lr=0.1))
    error = raises(pipert.errors.PipertError, "not finite", lambda: engine.step(torch.randn(8, 4), torch.randn(8, 4)))
    assert error.op == "1F0"
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def a_rank_that_dies():
    """Rank 1 ends while rank 0's device waits for it."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=4))
    module = nn.Linear(4, 4)
    if rank == 1:
        module.register_forward_pre_hook(lambda *_: (time.sleep(1), os.kill(os.getpid(), signal.SIGKILL)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    engine = pipert.Engine(
        plan, {rank: module}, nn.functional.mse_loss, process_group=dist.group.WORLD, optimizer=optimizer
    )
    start = time.monotonic()
    raises(PeerLost, "rank 1", lambda: engine.step(torch.randn(8, 4), torch.randn(8, 4)))
    assert time.monotonic() - start < 15
    sys.stdout.write("rank 0 goes on\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]]()
