"""A plan's UNSHARD, RESHARD and REDUCE_GRAD on modules, sharded by torch's FSDP2 and not."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pipert
from pipert import Program
from pipert.errors import StageError
from pipert.ir import Op
from pipert.stages import Timed

ROWS = [
    "0UNSHARD 0F0 0F1 0B0 0B1 0REDUCE_GRAD 0RESHARD",
    "1UNSHARD 1F0 1F1 1RESHARD 1UNSHARD 1I0 1I1 1W1 1W0 1REDUCE_GRAD 1RESHARD",
]
PLAN = pipert.compile(
    Program.single_path("sharded", (0, 1), 2, tuple(tuple(map(Op.parse, row.split())) for row in ROWS))
)


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def make_modules():
    torch.manual_seed(0)
    return {stage: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for stage in range(2)}


def squared_error(output, target):
    return (output - target).square().mean()


def test_sharded_modules_get_the_gradients_of_plain_ones(mesh):
    modules, plain = make_modules(), make_modules()
    for module in modules.values():
        fully_shard(module[0], mesh=mesh)
        fully_shard(module, mesh=mesh)
    batch = torch.randn(4, 4), torch.randn(4, 4)
    with pipert.Engine(PLAN, modules, squared_error) as engine, pipert.Engine(PLAN, plain, squared_error) as unsharded:
        for _ in range(2):
            assert torch.equal(engine.step(*batch).losses, unsharded.step(*batch).losses)
            for stage, module in modules.items():
                for ours, theirs in zip(module.parameters(), plain[stage].parameters(), strict=True):
                    assert torch.equal(ours.grad.full_tensor(), theirs.grad)
                    ours.grad = theirs.grad = None


class Recording(Timed):
    def __init__(self, stage, calls):
        super().__init__(F=0, I=0, W=0, stage=stage, num_stages=2)
        self.stage, self.calls = stage, calls

    def unshard(self):
        self.calls.append(f"{self.stage}UNSHARD")

    def reduce_grad(self):
        self.calls.append(f"{self.stage}REDUCE_GRAD")


def test_a_stage_of_ones_own_gets_the_calls_it_has_methods_for():
    calls = []
    with pipert.Engine(PLAN, {stage: Recording(stage, calls) for stage in range(2)}) as engine:
        result = engine.step()
    for stage in "01":
        mine = [call for call in calls if call.startswith(stage)]
        assert mine == [op for op in ROWS[int(stage)].split() if op.endswith(("UNSHARD", "REDUCE_GRAD"))]
    assert all(result.trace.end[op] >= result.trace.start[op] for op in range(PLAN.num_ops))


def test_a_failure_names_the_op():
    def broken():
        raise ValueError("no link")

    stages = {stage: Recording(stage, []) for stage in range(2)}
    stages[1].reduce_grad = broken
    with pytest.raises(StageError, match="rank 1, 1REDUCE_GRAD, step 0: ValueError: no link"):
        pipert.Engine(PLAN, stages).step()


def test_eval_step_has_no_collectives(mesh):
    modules = make_modules()
    expected = copy.deepcopy(modules)
    for module in modules.values():
        fully_shard(module, mesh=mesh)
    batch = torch.randn(4, 4), torch.randn(4, 4)
    with (
        pipert.Engine(PLAN, modules, squared_error) as engine,
        pipert.Engine(PLAN, expected, squared_error) as unsharded,
    ):
        assert torch.equal(engine.eval_step(*batch).losses, unsharded.eval_step(*batch).losses)
