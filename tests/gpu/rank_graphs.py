"""Run by each rank, whose argument is the kind of graph: captured steps over ipc have the bits of eager ones."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1] / "multiprocess"))
from pipelines import assert_same_bits, pipeline

import pipert

NUM_STEPS = 6


def train(pipe, modules, group, mode):
    """Return the losses of every step, where they are known."""
    optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.01)
    losses = []
    with pipert.Engine(
        pipe.plan, modules, pipe.loss_fn, process_group=group, optimizer=optimizer, tied=pipe.tied, cuda_graph=mode
    ) as engine:
        for step in range(NUM_STEPS):
            result = engine.step([x + step for x in pipe.inputs], [y - step for y in pipe.targets])
            losses.append(None if result.losses is None else result.losses.clone())
    return losses


def main():
    mode = "op" if sys.argv[1] == "op" else True
    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    for schedule in ("1f1b", "zb-v"):
        pipe = pipeline("tied", schedule, num_ranks)
        alone, here = pipe.copies(), pipe.copies(rank)
        expected = train(pipe, alone, None, False)
        found = train(pipe, here, dist.group.WORLD, mode)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is None or torch.equal(ours, theirs)
        for replica, module in here.items():
            assert_same_bits(module.state_dict(), alone[replica].state_dict())
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")


main()
