"""A split output layer whose loss is the caller's, known to the last stage alone; the first stage has the embedding."""

from contextlib import contextmanager

import pytest
import torch
from split_models import Model, rows_of, whole
from torch import nn

import pipert
from pipert.errors import ConfigError, StageError
from pipert.kernels import VocabShard
from pipert.ops import OpKind
from pipert.passes import vocab_parallel
from pipert.stages import SplitVocabulary

RANKS, MICROBATCHES, DIM, VOCAB, LENGTH = 3, 4, 6, 29, 5


def own_loss(losses: torch.Tensor, microbatch: int) -> torch.Tensor:
    """Make a loss in which each token has another gradient, which depends on all losses; some have none."""
    weights = torch.linspace(0.0, 1.0, losses.numel(), dtype=losses.dtype) * (microbatch + 1)
    return (losses * weights).sum().square()


class OwnLoss:
    """The loss of one rank."""

    def __init__(self, targets=None) -> None:
        self.num_tokens = LENGTH
        self.all_targets = targets
        self.losses = {}
        self.num_added = 0

    def targets(self, microbatch):
        return self.all_targets[microbatch]

    def loss_grad(self, microbatch, losses):
        leaf = losses.detach().requires_grad_(torch.is_grad_enabled())
        loss = own_loss(leaf, microbatch)
        self.losses[microbatch] = loss.detach()
        return torch.autograd.grad(loss, leaf)[0] if leaf.requires_grad else None

    @contextmanager
    def adding_weight_grad(self):
        yield
        self.num_added += 1


class Problem:
    """A model, whole and in pieces, and a step's data."""

    def __init__(self, schedule: str, algorithm: int = 2) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = [torch.randint(VOCAB, (LENGTH,), generator=generator) for _ in range(MICROBATCHES)]
        self.targets = [torch.randint(VOCAB, (LENGTH,), generator=generator) for _ in range(MICROBATCHES)]
        self.model = Model(VOCAB, DIM, RANKS, tied=False, dtype=torch.float64)
        self.stages = self.model.stages()
        embedding = nn.Embedding.from_pretrained(self.model.embedding.detach().clone(), freeze=False)
        self.stages[0] = nn.Sequential(embedding, self.stages[0])
        self.losses = {rank: OwnLoss(self.targets if rank == RANKS - 1 else None) for rank in range(RANKS)}
        self.shards = {}
        for rank in range(RANKS):
            shard = VocabShard(VOCAB, RANKS, rank)
            weight = nn.Parameter(rows_of(shard, self.model.output))
            self.shards[rank] = SplitVocabulary(shard, output=weight, loss=self.losses[rank])
        program = pipert.schedules.build(schedule, num_ranks=RANKS, num_microbatches=MICROBATCHES)
        self.plan = pipert.compile(vocab_parallel(program, algorithm, embedding=False))
        self.engine = pipert.Engine(self.plan, self.stages, vocabulary=self.shards)

    def expected(self) -> list[torch.Tensor]:
        """Return the losses of the whole model, and leave its gradients."""
        result = []
        for microbatch, (tokens, targets) in enumerate(zip(self.tokens, self.targets, strict=True)):
            loss = own_loss(self.model.loss(tokens, targets, reduction="none"), microbatch)
            loss.backward()
            result.append(loss.detach())
        return result


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_gradients_are_those_of_the_whole_model(schedule: str) -> None:
    problem = Problem(schedule)
    assert not {op.kind for op in problem.plan.ops} & {OpKind.EMBED, OpKind.VEMBED, OpKind.EMBED_W, OpKind.VEMBED_GRAD}
    expected = problem.expected()
    for step in (1, 2):
        result = problem.engine.step(problem.tokens)
        assert result.loss is None
        assert [loss.num_added for loss in problem.losses.values()] == [step * MICROBATCHES] * RANKS
    last = problem.losses[RANKS - 1]
    torch.testing.assert_close([last.losses[m] for m in range(MICROBATCHES)], expected, rtol=1e-12, atol=0)
    pairs = [(whole(problem.shards, "output", grad=True), problem.model.output.grad)]
    pairs.append((problem.stages[0][0].weight.grad, problem.model.embedding.grad))
    blocks = [problem.stages[0][1], *(problem.stages[stage] for stage in range(1, RANKS))]
    for ours, theirs in zip(blocks, problem.model.blocks, strict=True):
        pairs += [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    for found, wanted in pairs:
        torch.testing.assert_close(found / 2, wanted, rtol=1e-11, atol=1e-12)
    last.losses.clear()
    problem.engine.eval_step(problem.tokens)
    torch.testing.assert_close([last.losses[m] for m in range(MICROBATCHES)], expected, rtol=1e-12, atol=0)
    problem.engine.close()


def test_algorithm_1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocabulary: .* Algorithm 1; .* use Algorithm 2"):
        Problem("1f1b", algorithm=1)


def test_an_output_of_another_size_is_refused() -> None:
    problem = Problem("1f1b")
    for loss in problem.losses.values():
        loss.num_tokens = LENGTH + 1
    with pytest.raises(StageError, match=r"one tensor of 6 tokens of size 6 .*; it is \[5, 6\] of torch.float64"):
        problem.engine.step(problem.tokens)


def test_a_main_gradient_of_low_precision_gets_the_sum() -> None:
    """Of numbers each too small to change it, which together do."""
    shard = VocabShard(VOCAB)
    weight = nn.Parameter(torch.randn(shard.size, DIM, dtype=torch.bfloat16))
    weight.main_grad = torch.full_like(weight, 256.0)
    vocabulary = SplitVocabulary(shard, output=weight)
    for _ in range(64):
        vocabulary.gradient_sum(weight).add_(0.5)
    assert (weight.main_grad == 256).all()
    vocabulary.finish()
    assert (weight.main_grad == 288).all()
    assert weight.grad is None
