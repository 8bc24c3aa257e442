"""Run by each rank: with post-validation the ranks compute what one process computes with a barrier."""

import sys

import post_validation_run as runs
import pytest
import torch
import torch.distributed as dist

from pipert import PipertError, passes


def main() -> None:
    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    for schedule in ("1f1b", "zb-v", "zb-h2"):
        made = runs.program(schedule, num_ranks)
        expected, expected_losses = runs.train(made)
        here = made.chunks(rank)
        modules, losses = runs.train(passes.post_validation(made), stages=here, group=dist.group.WORLD)
        if made.num_stages - 1 in here:
            assert losses == expected_losses
        for stage, module in modules.items():
            for name, parameter in module.named_parameters():
                assert torch.equal(parameter, expected[stage].get_parameter(name)), (schedule, stage, name)
        assert rank > 0 or runs.reruns(modules)[0] > 0
    made = passes.post_validation(runs.program("1f1b", num_ranks))
    with pytest.raises(PipertError, match="step 1: the gradient norm is nan"):
        runs.train(made, stages=[rank], group=dist.group.WORLD, spoil=1)
    dist.destroy_process_group()
    sys.stdout.write(f"rank {rank} done\n")  # in one piece, as all ranks write into one file


main()
