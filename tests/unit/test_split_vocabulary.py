"""The engine on plans that split the vocabulary, all ranks in one process, against the unsplit model."""

import pytest
import torch
from split_models import Model, one_by_one, whole

import pipert

RANKS, MICROBATCHES, DIM, VOCAB = 3, 4, 6, 29


def data(seed: int, *, ignored: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (MICROBATCHES * 2, 5), generator=generator)
    targets = torch.randint(VOCAB, (MICROBATCHES * 2, 5), generator=generator)
    targets.view(-1)[torch.randperm(targets.numel(), generator=generator)[:ignored]] = -100
    return tokens, targets


def expected(model: Model, tokens: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """One step of the unsplit model, with its gradients."""
    pieces = list(zip(tokens.chunk(MICROBATCHES), targets.chunk(MICROBATCHES), strict=True))
    if reduction == "token":
        loss = sum(model.loss(*piece, reduction="sum") for piece in pieces) / (targets != -100).sum()
    else:
        loss = sum(model.loss(*piece) for piece in pieces) / MICROBATCHES
    loss.backward()
    return loss.detach()


def largest_difference(model: Model, stages, shards, *, grad: bool) -> float:
    pairs = [(getattr(model, name), whole(shards, name, grad=grad)) for name in ("embedding", "output")]
    for stage, block in enumerate(model.blocks):
        for mine, other in zip(block.parameters(), stages[stage].parameters(), strict=True):
            pairs.append((mine, other.grad if grad else other.detach()))
    return max(float(((a.grad if grad else a) - b).abs().max() / (a.grad if grad else a).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("reduction", ["microbatch", "token"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_it_trains_as_the_unsplit_model(algorithm: int, tied: bool, reduction: str) -> None:
    model = Model(VOCAB, DIM, RANKS, tied=tied, dtype=torch.float64)
    stages, shards = model.stages(), model.shards(RANKS)
    parameters = {p for module in (*stages.values(), *shards.values()) for p in module.parameters()}
    plan = pipert.compile(one_by_one(RANKS, MICROBATCHES, algorithm))
    engine = pipert.Engine(
        plan, stages, vocabulary=shards, loss_reduction=reduction, clip_norm=0.5,
        optimizer=torch.optim.SGD(parameters, lr=0.3, momentum=0.9),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for step in range(5):
        tokens, targets = data(step)
        result = engine.step(tokens, targets)
        loss = expected(model, tokens, targets, reduction)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)
        assert largest_difference(model, stages, shards, grad=False) < 1e-12
    assert all(not parameter.grad for parameter in parameters)
    tokens, targets = data(9)
    with torch.no_grad():
        wanted = [model.loss(*piece).item() for piece in zip(tokens.chunk(4), targets.chunk(4), strict=True)]
    evaluated = engine.eval_step(tokens, targets)
    if reduction == "microbatch":
        assert evaluated.losses.tolist() == pytest.approx(wanted, rel=1e-12)
    engine.close()
