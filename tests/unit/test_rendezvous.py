import pytest
import torch
import torch.distributed as dist
from torch import nn

import pipert
from pipert import rendezvous, schedules
from pipert.errors import ConfigError, TransportError
from pipert.finish import Finish

OPTIONS = {"seed": 0}


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def make_plan(num_ranks):
    return pipert.compile(schedules.build("gpipe", num_ranks=num_ranks, num_microbatches=2))


def test_gather_carries_any_json(group):
    value = {"text": "ü", "list": [1, 2.5, None, True], "empty": {}}
    assert rendezvous.gather(group, value) == [value]


def test_a_session_is_nobody_elses(group):
    sessions = {rendezvous.meet(group, make_plan(1), OPTIONS) for _ in range(3)}
    assert len(sessions) == 3


def test_a_plan_for_other_ranks_is_refused(group):
    with pytest.raises(ConfigError, match="for 2 ranks, the process group has 1"):
        rendezvous.meet(group, make_plan(2), OPTIONS)


def test_ones_own_fault_comes_back_unchanged(group):
    fault = ConfigError("no stage")
    with pytest.raises(ConfigError) as raised:
        rendezvous.meet(group, make_plan(1), OPTIONS, fault)
    assert raised.value is fault


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"machine": "other", "host": "far"}, TransportError, "rank 1 is on far, rank 0 on .* one machine"),
        ({"plan": 1}, ConfigError, "rank 1 has another plan"),
        ({"options": {"seed": 1}}, ConfigError, "rank 1 has seed=1, rank 0 seed=0"),
        ({"fault": "ConfigError: no stage"}, ConfigError, "rank 1 cannot start: ConfigError: no stage"),
    ],
)
def test_ranks_that_cannot_work_together_are_named(group, monkeypatch, change, error, message):
    monkeypatch.setattr(rendezvous, "gather", lambda group, about: [about, about | change])
    with pytest.raises(error, match=message) as raised:
        rendezvous.meet(group, make_plan(2), OPTIONS)
    assert raised.value.rank == 1


def test_one_rank_with_a_group_trains(group):
    module = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pipert.Engine(
        make_plan(1), {0: module}, nn.functional.mse_loss, process_group=group, optimizer=optimizer
    ) as engine:
        x, target = torch.randn(4, 3), torch.randn(4, 3)
        losses = [engine.step(x, target).loss.item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]


def test_a_group_that_fails_at_the_end_of_a_step_is_a_transport_error(group, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("connection closed by peer")

    finish = Finish([[0]], {(0, 0): nn.Linear(1, 1)}, 0, group, counting_rank=0)
    finish.connect()
    monkeypatch.setattr(dist, "broadcast", broken)
    with pytest.raises(
        TransportError, match="rank 0: the process group failed at the end of step 4: connection closed"
    ):
        finish(4, torch.tensor(1), per_token=True)


def test_a_group_that_moves_no_host_memory_is_refused():
    dist.init_process_group("cuda:gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with pytest.raises(ConfigError, match="moves no tensors of host memory"):
            rendezvous.meet(dist.group.WORLD, make_plan(1), OPTIONS)
    finally:
        dist.destroy_process_group()
