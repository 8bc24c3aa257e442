"""A split vocabulary on one GPU, all ranks in this process, against the unsplit model on the host."""

import pytest
import torch
from split_models import Model, whole

import pipert

pytestmark = pytest.mark.gpu

VOCAB, DIM, RANKS, MICROBATCHES = 101, 16, 4, 8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-v"])
def test_gradients_are_the_unsplit_models(device, schedule, algorithm, tied):
    program = pipert.schedules.build(schedule, num_ranks=RANKS, num_microbatches=MICROBATCHES)
    plan = pipert.compile(pipert.passes.vocab_parallel(program, algorithm))
    model = Model(VOCAB, DIM, plan.num_stages, tied=tied, dtype=torch.float64)
    stages = {stage: module.to(device) for stage, module in model.stages().items()}
    shards = {rank: shard.to(device) for rank, shard in model.shards(RANKS).items()}
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(VOCAB, (2 * MICROBATCHES, 7), generator=generator) for _ in range(2))
    pieces = zip(tokens.chunk(MICROBATCHES), targets.chunk(MICROBATCHES), strict=True)
    losses = torch.stack([model.loss(*piece) for piece in pieces])
    losses.mean().backward()
    with pipert.Engine(plan, stages, vocabulary=shards) as engine:
        result = engine.step(tokens.to(device), targets.to(device))
        again = engine.eval_step(tokens.to(device), targets.to(device))
    assert result.losses.tolist() == pytest.approx(losses.tolist(), rel=1e-12)
    assert again.losses.tolist() == pytest.approx(losses.tolist(), rel=1e-12)
    for name in ("embedding", "output"):
        expected = getattr(model, name).grad
        assert (whole(shards, name, grad=True).cpu() - expected).norm() < 1e-12 * expected.norm()
    for stage, block in enumerate(model.blocks):
        for mine, other in zip(block.parameters(), stages[stage].parameters(), strict=True):
            assert (other.grad.cpu() - mine.grad).norm() < 1e-12 * mine.grad.norm()
