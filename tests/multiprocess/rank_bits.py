"""Run by each rank: schedules have the bits of the reference, and of all ranks in one process.

Arguments: the schedules; without any, all of them. On the CPU the ranks share memory; where.py says how to have them
on a CUDA device.
"""

import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from pipelines import CASES, PROGRAMS, SCHEDULES, TWO_WAY, Pipeline, assert_same_bits, build, gradients, pipeline

import pipert

LONG = ("zb-v", TWO_WAY)


def check_one_step(pipe: Pipeline, rank: int) -> None:
    reference = pipe.copies()
    expected = pipert.reference_step(
        pipe.plan, reference, pipe.inputs, pipe.targets, pipe.loss_fn, tied=pipe.tied, seed=5, step=0
    )
    modules = pipe.copies(rank)
    group = dist.group.WORLD
    with pipert.Engine(
        pipe.plan, pipe.stages(modules), pipe.loss_fn, process_group=group, tied=pipe.tied, seed=5
    ) as engine:
        result = engine.step(pipe.inputs, pipe.targets)
        recorded = list(result.trace.recorded())
    assert_same_bits(gradients(modules), gradients({replica: reference[replica] for replica in modules}))
    if rank in pipe.plan.holders(pipe.plan.num_stages - 1):
        assert torch.equal(result.losses, expected.losses)
        assert torch.equal(result.loss, expected.loss)
    else:
        assert result.losses is None
    assert list(result.peak_activation_bytes) == [rank]
    own_ops = [op for op in range(pipe.plan.num_ops) if pipe.plan.rank_of(op) == rank]
    assert recorded == own_ops


def check_training(pipe: Pipeline, rank: int, num_steps: int) -> None:
    """Several steps with the optimizer, some accumulated, microbatches of changing sizes, an evaluation between."""
    alone, modules = pipe.copies(), pipe.copies(rank)
    options = {"clip_norm": 0.05, "tied": pipe.tied, "seed": 5}
    everything = pipert.Engine(pipe.plan, alone, pipe.loss_fn, optimizer=adamw(alone), **options)
    here = pipert.Engine(
        pipe.plan, modules, pipe.loss_fn, optimizer=adamw(modules), process_group=dist.group.WORLD, **options
    )
    is_first, is_last = rank in pipe.plan.holders(0), rank in pipe.plan.holders(pipe.plan.num_stages - 1)
    with everything, here:
        for step in range(num_steps):
            turn = step % len(pipe.inputs)
            inputs = [x.repeat(1 + step % 3, 1) for x in pipe.inputs[turn:] + pipe.inputs[:turn]]
            targets = [y.repeat(1 + step % 3, 1) for y in pipe.targets[turn:] + pipe.targets[:turn]]
            accumulate = step % 2 == 0
            expected = everything.step(inputs, targets, accumulate=accumulate)
            result = here.step(inputs if is_first else None, targets if is_last else None, accumulate=accumulate)
            evaluated = everything.eval_step(inputs, targets)
            found = here.eval_step(inputs if is_first else None, targets if is_last else None)
            assert (result.grad_norm is None) == accumulate
            if not accumulate:
                assert torch.equal(result.grad_norm, expected.grad_norm)
                assert result.grad_norm > 0.05
            if is_last:
                assert torch.equal(result.losses, expected.losses)
                assert torch.equal(found.losses, evaluated.losses)
    for replica, module in modules.items():
        assert_same_bits(module.state_dict(), alone[replica].state_dict())


def adamw(modules) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.01)


def share_programs(names: Sequence[str], rank: int, num_ranks: int) -> None:
    """Let all ranks have the programs of rank 0: a search that ends with its time finds other ones every time."""
    programs = [build(name, num_ranks, 2 * num_ranks) if rank == 0 else None for name in names]
    dist.broadcast_object_list(programs)
    PROGRAMS.update({(name, num_ranks, 2 * num_ranks): found for name, found in zip(names, programs, strict=True)})


def main() -> None:
    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or SCHEDULES
    share_programs(chosen, rank, num_ranks)
    for index, schedule in enumerate(chosen):
        check_one_step(pipeline(CASES[index % len(CASES)], schedule, num_ranks), rank)
        check_training(pipeline("tied", schedule, num_ranks), rank, 6 if schedule in LONG else 2)
    for case in CASES:
        check_one_step(pipeline(case, TWO_WAY, num_ranks), rank)
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")  # in one piece, as all ranks write into one file


main()
