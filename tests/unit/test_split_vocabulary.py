"""The engine on plans that split the vocabulary, all ranks in one process, against the unsplit model."""

import pytest
import torch
from split_models import Model, one_by_one, whole
from torch import nn
from torch.nn import functional

import pipert
from pipert.kernels import LossOptions, VocabShard
from pipert.stages import SplitVocabulary

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
    wanted = [((a.grad if grad else a).detach(), b) for a, b in pairs]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in wanted)


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
    assert all(parameter.grad is None for parameter in parameters)
    tokens, targets = data(9)
    with torch.no_grad():
        wanted = [model.loss(*piece).item() for piece in zip(tokens.chunk(4), targets.chunk(4), strict=True)]
    evaluated = engine.eval_step(tokens, targets)
    if reduction == "microbatch":
        assert evaluated.losses.tolist() == pytest.approx(wanted, rel=1e-12)
    engine.close()


def engine_of(model: Model, shards, algorithm: int = 2, *, stages=None, **options) -> pipert.Engine:
    plan = pipert.compile(one_by_one(RANKS, MICROBATCHES, algorithm))
    return pipert.Engine(plan, stages or model.stages(), vocabulary=shards, **options)


@pytest.mark.parametrize("algorithm", [1, 2])
def test_options_and_weights(algorithm: int) -> None:
    """Smoothing, z-loss and weights of tokens, against autograd over the whole logits."""
    options = LossOptions(label_smoothing=0.1, z_loss=1e-2)
    model = Model(VOCAB, DIM, RANKS, tied=False, dtype=torch.float64)
    stages, shards = model.stages(), model.shards(RANKS, options)
    tokens, targets = data(3)
    weights = torch.rand(targets.shape, dtype=torch.float64)
    losses = []
    for piece, target, weight in zip(*(each.chunk(MICROBATCHES) for each in (tokens, targets, weights)), strict=True):
        x = functional.embedding(piece, model.embedding)
        for block in model.blocks:
            x = block(x)
        logits = (x @ model.output.T).flatten(0, 1)
        each = functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1, reduction="none")
        each = each + 1e-2 * logits.logsumexp(-1).square()
        kept = weight.flatten() * (target.flatten() != -100)
        losses.append((each * kept).sum() / kept.sum())
    loss = torch.stack(losses).mean()
    loss.backward()
    pairs = list(zip(targets.chunk(MICROBATCHES), weights.chunk(MICROBATCHES), strict=True))
    with engine_of(model, shards, algorithm, stages=stages) as engine:
        result = engine.step(list(tokens.chunk(MICROBATCHES)), pairs)
    assert result.losses.tolist() == pytest.approx([each.item() for each in losses], rel=1e-12)
    assert largest_difference(model, stages, shards, grad=True) < 1e-12


@pytest.mark.parametrize("frozen", ["output", "bias"])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_a_frozen_weight_or_bias_gets_no_gradient(algorithm: int, frozen: str) -> None:
    """The other's, and the stages', are those of a model in which nothing is frozen."""
    model = Model(VOCAB, DIM, RANKS, tied=False, dtype=torch.float64)
    found = {}
    for freeze in (True, False):
        stages, shards = model.stages(), model.shards(RANKS)
        for rank, shard in shards.items():
            bias = nn.Parameter(torch.linspace(-1, 1, shard.shard.size, dtype=torch.float64))
            shards[rank] = SplitVocabulary(shard.shard, shard.embedding, shard.output, bias=bias)
            getattr(shards[rank], frozen).requires_grad_(not freeze)
        with engine_of(model, shards, algorithm, stages=stages) as engine:
            engine.step(*data(4))
        found[freeze] = stages, shards
    trained = "bias" if frozen == "output" else "output"
    for rank in range(RANKS):
        one, other = found[True][1][rank], found[False][1][rank]
        assert getattr(one, frozen).grad is None
        assert getattr(other, frozen).grad.any()
        assert torch.equal(getattr(one, trained).grad, getattr(other, trained).grad)
        assert torch.equal(one.embedding.grad, other.embedding.grad)
    assert torch.equal(found[True][0][0].linear.weight.grad, found[False][0][0].linear.weight.grad)


def test_a_microbatch_without_targets_counts_nothing() -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float64)
    tokens, targets = data(1)
    targets[:2] = -100
    stages, shards = model.stages(), model.shards(RANKS)
    with engine_of(model, shards, stages=stages) as engine:
        result = engine.step(tokens, targets)
    assert result.losses[0] == 0
    assert all(parameter.grad.isfinite().all() for parameter in shards[0].parameters())


def test_gradients_of_low_precision_are_rounded_once() -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float32)
    tokens, targets = data(2)
    low = {rank: shard.to(torch.bfloat16) for rank, shard in model.shards(RANKS).items()}
    exact = model.shards(RANKS)
    for rank, shard in exact.items():
        shard.embedding.data.copy_(low[rank].embedding)
    with engine_of(model, low, stages={s: m.to(torch.bfloat16) for s, m in model.stages().items()}) as engine:
        engine.step(tokens, targets)
    with engine_of(model, exact) as engine:
        engine.step(tokens, targets)
    for rank, shard in low.items():
        assert shard.embedding.grad.dtype == torch.bfloat16
        error = (shard.embedding.grad - exact[rank].embedding.grad).norm() / exact[rank].embedding.grad.norm()
        assert error < 2e-2


def test_activations_are_counted_from_s_to_t() -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float64)
    with engine_of(model, model.shards(RANKS)) as engine:
        result = engine.step(*data(0))
    rows = VocabShard(VOCAB, RANKS).size
    tokens = 2 * 5
    assert result.peak_activation_bytes[0] >= 8 * tokens * (rows + 2 * DIM)


class Wrong(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(x * self.scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda x: x[..., :3], "[2, 5, 3]"), (lambda x: x.double(), "float64"), (lambda x: (x, x), "2 outputs")],
)
def test_an_output_that_does_not_fit_is_refused(change, words: str) -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float32)
    stages = {**model.stages(), RANKS - 1: Wrong(change)}
    with engine_of(model, model.shards(RANKS), stages=stages) as engine, pytest.raises(pipert.PipertError) as error:
        engine.step(*data(0))
    assert words in str(error.value)
    assert "2F0" in str(error.value)


def test_bad_batches_are_refused() -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float32)
    tokens, targets = data(0)

    def refused(inputs, wanted, **options) -> str:
        with engine_of(model, model.shards(RANKS), **options) as engine, pytest.raises(pipert.PipertError) as error:
            engine.step(inputs, wanted)
        return str(error.value)

    assert "targets" in refused(tokens, None)
    assert "inputs" in refused(tokens.float(), targets)
    assert "integers" in refused(tokens, targets.float())
    assert "29" in refused(tokens, torch.full_like(targets, VOCAB))
    assert "29" in refused(torch.full_like(tokens, VOCAB), targets)
    pairs = [(each, torch.ones(3)) for each in targets.chunk(MICROBATCHES)]
    assert "weights" in refused(list(tokens.chunk(MICROBATCHES)), pairs)
    pairs = [(each, torch.ones(each.shape)) for each in targets.chunk(MICROBATCHES)]
    assert "mask" in refused(list(tokens.chunk(MICROBATCHES)), pairs, loss_reduction="token")


def test_shards_that_do_not_fit_the_plan_are_refused() -> None:
    model = Model(VOCAB, DIM, RANKS, tied=True, dtype=torch.float32)
    shards = model.shards(RANKS)
    plain = pipert.compile(pipert.schedules.build("1f1b", num_ranks=RANKS, num_microbatches=4))
    with pytest.raises(pipert.ConfigError, match="no ranks"):
        pipert.Engine(plain, model.stages(), functional.mse_loss, vocabulary=shards)
    with pytest.raises(pipert.ConfigError, match="expected shards for ranks 0, 1, 2"):
        engine_of(model, None)
    with pytest.raises(pipert.ConfigError, match="expected shard 0 of 3"):
        engine_of(model, {0: shards[1], 1: shards[0], 2: shards[2]})
    with pytest.raises(pipert.ConfigError, match="output layer"):
        engine_of(model, {rank: SplitVocabulary(each.shard, each.embedding) for rank, each in shards.items()})
    with pytest.raises(pipert.ConfigError, match="loss_fn"):
        engine_of(model, shards, loss_fn=functional.mse_loss)
    with pytest.raises(pipert.ConfigError, match="padded"):
        SplitVocabulary(VocabShard(VOCAB, 2, 0), shards[0].embedding)
