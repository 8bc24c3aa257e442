"""Run by each rank: a split vocabulary trains as the unsplit model does, and a failure ends every rank.

Arguments: ``train`` or the name of a failure, and schedules.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from split_models import Model, rows_of

import pipert
from pipert.errors import PeerLost, StageError

VOCAB, DIM, STEPS = 101, 16, 5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def data(step: int, num_microbatches: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens, targets = (torch.randint(VOCAB, (num_microbatches * 2, 7), generator=generator) for _ in range(2))
    targets[:, -1 - step % 3] = -100
    return tokens, targets


def train(schedule: str, algorithm: int, dtype: torch.dtype, *, tied: bool) -> None:
    """Five steps; in fp64 the parameters stay together, in fp32 each step starts from equal ones."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    program = pipert.schedules.build(schedule, num_ranks=num_ranks, num_microbatches=2 * num_ranks)
    plan = pipert.compile(pipert.passes.vocab_parallel(program, algorithm))
    model = Model(VOCAB, DIM, plan.num_stages, tied=tied, dtype=dtype)
    stages = {stage: module for stage, module in model.stages().items() if stage in plan.chunks(rank)}
    shard = model.shard(num_ranks, rank)
    parameters = {p for module in (*stages.values(), shard) for p in module.parameters()}
    engine = pipert.Engine(
        plan, stages, vocabulary=shard, process_group=dist.group.WORLD, clip_norm=1.0,
        optimizer=torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    has_loss = rank in plan.holders(plan.num_stages - 1)
    with engine:
        for step in range(STEPS):
            tokens, targets = data(step, plan.num_microbatches)
            result = engine.step(tokens, targets)
            pieces = zip(tokens.chunk(plan.num_microbatches), targets.chunk(plan.num_microbatches), strict=True)
            losses = torch.stack([model.loss(*piece) for piece in pieces])
            losses.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert (result.losses is not None) == has_loss
            if has_loss:
                close(result.losses, losses.detach(), dtype)
            close(result.grad_norm, norm, dtype)
            compare(model, stages, shard, dtype)
            if dtype == torch.float32:
                copy(model, stages, shard)
        evaluated = engine.eval_step(tokens, targets)
        if has_loss:
            pieces = zip(tokens.chunk(plan.num_microbatches), targets.chunk(plan.num_microbatches), strict=True)
            close(evaluated.losses, torch.stack([model.loss(*piece) for piece in pieces]).detach(), dtype)


def compare(model: Model, stages, shard, dtype: torch.dtype) -> None:
    for stage, module in stages.items():
        for mine, other in zip(model.blocks[stage].parameters(), module.parameters(), strict=True):
            close(other, mine, dtype)
    num_real = shard.shard.num_real
    for name in ("embedding", "output"):
        close(getattr(shard, name)[:num_real], rows_of(shard.shard, getattr(model, name))[:num_real], dtype)
        assert torch.equal(getattr(shard, name)[num_real:], torch.ones_like(getattr(shard, name)[num_real:]))


@torch.no_grad()
def copy(model: Model, stages, shard) -> None:
    for stage, module in stages.items():
        module.load_state_dict(model.blocks[stage].state_dict())
    shard.embedding.copy_(rows_of(shard.shard, model.embedding))
    shard.output.copy_(rows_of(shard.shard, model.output))


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    found, expected = found.detach(), expected.detach()
    if expected.numel():
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], float(error)


class Failing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if sys.argv[1] == "dies":
            os._exit(7)
        raise ValueError("this stage is broken")


def fail(how: str) -> None:
    """Rank 1 fails in its stage while the others are on their way to a meeting; all end, and say why."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    plan = pipert.compile(
        pipert.passes.vocab_parallel(pipert.schedules.build("1f1b", num_ranks=num_ranks, num_microbatches=4), 2)
    )
    model = Model(VOCAB, DIM, plan.num_stages, tied=True, dtype=torch.float32)
    stage = Failing() if rank == 1 else model.stages()[rank]
    engine = pipert.Engine(
        plan, {rank: stage}, vocabulary=model.shard(num_ranks, rank), process_group=dist.group.WORLD, timeout_ms=20_000
    )
    with pytest.raises(StageError if rank == 1 else PeerLost, match="rank") as error:
        engine.step(*data(0, plan.num_microbatches))
    sys.stdout.write(f"rank {rank}: {error.type.__name__}\n")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if sys.argv[1] != "train":
        fail(sys.argv[1])
        sys.stdout.flush()
        os._exit(0)  # whoever is left has no process group any more
    for name in sys.argv[2:]:
        for algorithm in (1, 2):
            train(name, algorithm, torch.float64, tied=algorithm == 1)
            train(name, algorithm, torch.float32, tied=algorithm == 2)
    sys.stdout.write(f"rank {dist.get_rank()} done\n")
    dist.destroy_process_group()


main()
