"""Whether the shards that an engine is given are those of its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipert.errors import ConfigError
from pipert.ops import OpKind
from pipert.stages import SplitVocabulary

if TYPE_CHECKING:
    from pipert.plan import Plan


def splits_vocabulary(plan: Plan) -> tuple[bool, bool]:
    """Whether the plan splits the input embedding, and whether the output layer."""
    kinds = {op.kind for op in plan.ops}
    return OpKind.EMBED in kinds, OpKind.SCORE in kinds


def algorithm_of(plan: Plan) -> int:
    """Return 1 where T makes the input's gradient, before VGRAD sums it; 2 where S made the most of it."""
    late = (OpKind.SCORE_W, OpKind.VGRAD)
    first = next((op.kind for op_id, op in enumerate(plan.ops) if op.kind in late and plan.rank_of(op_id) == 0), None)
    return 1 if first is OpKind.SCORE_W else 2


def adopt_vocabulary(
    plan: Plan, given: SplitVocabulary | Mapping[int, SplitVocabulary] | None, ranks: Sequence[int]
) -> dict[int, SplitVocabulary]:
    """Check that the shards are those that ``ranks`` hold in ``plan``, and return them by rank.

    Raises:
        ConfigError: shards are missing, too many, or of another size; or their loss needs Algorithm 2.
    """
    shards = {ranks[0]: given} if isinstance(given, SplitVocabulary) else dict(given or {})
    embeds, scores = splits_vocabulary(plan)
    expected = sorted(ranks) if embeds or scores else []
    if sorted(shards) != expected:
        raise ConfigError(
            f"vocabulary: the plan splits it over {plan.num_ranks if expected else 'no'} ranks: expected shards for "
            f"ranks {_list(expected)} here, got them for {_list(sorted(shards))}"
        )
    for rank, vocabulary in shards.items():
        _check_size(plan, rank, vocabulary)
        _check_end(rank, "input embedding", embeds, vocabulary.embedding is not None)
        _check_end(rank, "output layer", scores, vocabulary.output is not None)
        if vocabulary.loss is not None and algorithm_of(plan) == 1:
            raise ConfigError(
                "vocabulary: the plan has Algorithm 1; where the last stage's rank alone knows the loss, others learn "
                "its gradients too late for that; use Algorithm 2"
            )
    return shards


def about_vocabulary(vocabulary: SplitVocabulary) -> list[Any]:
    """Return what must be the same on all ranks, as JSON values."""
    tied = vocabulary.embedding is vocabulary.output
    return [vocabulary.shard.vocab_size, repr(vocabulary.options), tied, vocabulary.bias is not None]


def _check_size(plan: Plan, rank: int, vocabulary: SplitVocabulary) -> None:
    found = (vocabulary.shard.index, vocabulary.shard.num_shards)
    if found != (rank, plan.num_ranks):
        expected = f"shard {rank} of {plan.num_ranks} on rank {rank}"
        raise ConfigError(f"vocabulary: expected {expected}, got shard {found[0]} of {found[1]}")


def _check_end(rank: int, what: str, expected: bool, found: bool) -> None:
    if expected != found:
        does, has = ("splits", "no") if expected else ("does not split", "a")
        raise ConfigError(f"vocabulary: the plan {does} the {what}, and rank {rank} has {has} shard of it")


def _list(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"
