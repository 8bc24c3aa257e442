"""Run by each of four ranks: torch's schedules, and pipert's adapter on the same stages' copies, have the same bits."""

import copy
import logging
import re
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

from pipert.errors import ConfigError, PeerLost
from pipert.torch_pipelining import Schedule

NUM_RANKS, NUM_MICROBATCHES, WIDTH = 4, 8, 12
LOOP = {1: lambda rank: (rank,), 2: lambda rank: (rank, rank + NUM_RANKS)}


def vee(rank):
    return rank, 2 * NUM_RANKS - 1 - rank


CASES = {
    "ScheduleGPipe": (LOOP[1], 1),
    "Schedule1F1B": (LOOP[1], 1),
    "ScheduleInterleaved1F1B": (LOOP[2], 2),
    "ScheduleLoopedBFS": (LOOP[2], 2),
    "ScheduleInterleavedZeroBubble": (LOOP[2], 2),
    "ScheduleZBVZeroBubble": (vee, 2),
    "ScheduleDualPipeV": (vee, 2),
}


class Layer(nn.Module):
    """Two tensors in, two tensors out, a keyword argument, dropout if wanted."""

    def __init__(self, stage, num_stages, dropout):
        super().__init__()
        torch.manual_seed(stage)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(WIDTH)
        self.is_last = stage == num_stages - 1

    def forward(self, x, residual, scale=None):
        y = self.drop(self.down(torch.tanh(self.up(self.norm(x)))))
        y = y if scale is None else y * scale
        return y + residual if self.is_last else (y, residual + y)


def loss_fn(output, target, weight=1.0):
    return nn.functional.mse_loss(output, target) * weight


def make(name, dropout=0.0):
    place, chunks = CASES[name]
    rank, num_stages = dist.get_rank(), NUM_RANKS * chunks
    modules = [Layer(stage, num_stages, dropout) for stage in place(rank)]
    copies = copy.deepcopy(modules)

    def stages(these):
        made = [PipelineStage(m, s, num_stages, torch.device("cpu")) for m, s in zip(these, place(rank), strict=True)]
        return made if chunks > 1 else made[0]

    return modules, copies, stages, num_stages - 1 in place(rank)


def same(found, expected):
    assert type(found) is type(expected), (found, expected)
    if found is None:
        return
    if isinstance(found, list):
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))
    else:
        assert torch.equal(found, expected)


def call(run, has_last, batch, seed, **more):
    x, residual, target, scale = batch
    losses = [torch.zeros(())] if has_last else None
    args = (x, residual) if dist.get_rank() == 0 else ()
    torch.manual_seed(seed + dist.get_rank())
    out = run(*args, target=target if has_last else None, losses=losses, scale=scale, **more)
    return out, losses


def check(name, as_class, dropout=0.0, scale_grads=True):
    modules, copies, stages, has_last = make(name, dropout)
    torch_class = getattr(pipelining, name, None) or getattr(pipelining.schedules, name)
    peer = torch_class(stages(modules), NUM_MICROBATCHES, loss_fn=loss_fn, scale_grads=scale_grads)
    if dropout:  # torch runs microbatch 0 once, to learn the shapes, and draws from the generators for that
        call(peer.step, has_last, batch_of(9), 0, loss_kwargs={"weight": 0.5})
        for module in modules:
            module.zero_grad()
    ours = torch_class if as_class else name.removeprefix("Schedule")
    with Schedule(
        ours, stages(copies), NUM_MICROBATCHES, loss_fn=loss_fn, scale_grads=scale_grads, timeout_ms=60_000
    ) as schedule:
        for step in range(2):
            batch = batch_of(step)
            expected = call(peer.step, has_last, batch, step, loss_kwargs={"weight": 0.5})
            found = call(schedule.step, has_last, batch, step, loss_kwargs={"weight": 0.5})
            for one, other in zip(found, expected, strict=True):
                same(one, other)
            for module, its_copy in zip(modules, copies, strict=True):
                for p, q in zip(module.parameters(), its_copy.parameters(), strict=True):
                    assert torch.equal(q.grad, p.grad), (name, step, p.shape, (p.grad - q.grad).abs().max())
                if step == 0:
                    with torch.no_grad():
                        for p in (*module.parameters(), *its_copy.parameters()):
                            p -= 0.1 * p.grad
        if not dropout:
            batch = batch_of(3)
            # torch's own eval fails where two neighbouring stages stand on one rank
            expected = call(peer.step if CASES[name][0] is vee else peer.eval, has_last, batch, 0)
            found = call(schedule.eval, has_last, batch, 0)
            for one, other in zip(found, expected, strict=True):
                same(one, other)


def batch_of(step):
    generator = torch.Generator().manual_seed(100 + step)
    rows = 2 * NUM_MICROBATCHES
    x, residual, target = (torch.randn(rows, WIDTH, generator=generator) for _ in range(3))
    return x, residual, target, torch.rand(rows, 1, generator=generator)


def refused(match, *args):
    with pytest.raises(ConfigError, match=re.escape(match)):
        Schedule(*args)


def check_refusals():
    rank = dist.get_rank()
    _, copies, stages, _ = make("ScheduleZBVZeroBubble")
    mine = stages(copies)
    refused("did you mean 'ScheduleInterleaved1F1B'?", "ScheduleInterleaved1F1", mine, 8)
    theirs = vee(rank)
    text = f"rank {rank} has stage(s) {theirs[0]}, {theirs[1]}; interleaved places {rank}, {rank + 4} there"
    refused(text, "Interleaved1F1B", mine, 8)
    mine[0].dw_builder = lambda: lambda: None
    refused("dw_builder is not honoured", "zb-v", mine, 8)
    mine[0].dw_builder = None
    _, copies, stages, _ = make("Schedule1F1B")
    replica = dist.new_group([rank], use_local_synchronization=True)
    stage = stages(copies)
    if rank == 1:
        stage.submod = nn.parallel.DistributedDataParallel(stage.submod, process_group=replica)
    text = "stage 1 on rank 1: a module under DistributedDataParallel"
    refused(text, "1F1B", stage, 8)


def check_wrong_number_of_microbatches():
    _, copies, stages, has_last = make("Schedule1F1B")
    schedule = Schedule("1f1b", stages(copies), NUM_MICROBATCHES, loss_fn=loss_fn, timeout_ms=20_000)
    x, residual, target, scale = batch_of(0)
    rank = dist.get_rank()
    if rank == 0:
        with pytest.raises(ConfigError, match="n_microbatches is 8, the batch gives 5"):
            schedule.step(x[:5], residual[:5])
    else:
        with pytest.raises(PeerLost):
            schedule.step(target=target if has_last else None, scale=scale)


def check_names(directory):
    """pipert's own schedules, torch's CSV, and no loss function."""
    _, copies, stages, has_last = make("ScheduleZBVZeroBubble")
    mine = stages(copies)
    path = f"{directory}/order.csv"
    if dist.get_rank() == 0:
        order = pipelining.ScheduleZBVZeroBubble(mine, NUM_MICROBATCHES, loss_fn=loss_fn)
        order._dump_csv(path, format="compute_only")
    dist.barrier()
    for name in ("v-half", path):
        with Schedule(name, mine, NUM_MICROBATCHES, loss_fn=loss_fn, timeout_ms=60_000) as schedule:
            out, losses = call(schedule.step, has_last, batch_of(0), 0)
            assert (out is None) == (not has_last)
            assert losses is None or len(losses) == NUM_MICROBATCHES
    for module in copies:
        module.zero_grad()
    with Schedule("zb-v", mine, NUM_MICROBATCHES, timeout_ms=60_000) as schedule:
        args = batch_of(0)[:2] if dist.get_rank() == 0 else ()
        out = schedule.step(*args)
        assert (out is None) == (not has_last)
        assert all(p.grad is None for module in copies for p in module.parameters())


def main():
    logging.getLogger("torch.distributed.pipelining").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for index, name in enumerate(CASES):
        check(name, as_class=index % 2 == 0)
    check("ScheduleInterleaved1F1B", as_class=True, dropout=0.3)
    check("Schedule1F1B", as_class=False, scale_grads=False)
    check_names(sys.argv[1])
    check_refusals()
    check_wrong_number_of_microbatches()
    print(f"rank {dist.get_rank()} done", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
