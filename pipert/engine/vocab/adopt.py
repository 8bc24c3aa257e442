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


def adopt_vocabulary(
    plan: Plan, given: SplitVocabulary | Mapping[int, SplitVocabulary] | None, ranks: Sequence[int]
) -> dict[int, SplitVocabulary]:
    """Check that the shards are those that ``ranks`` hold in ``plan``, and return them by rank.

    Raises:
        ConfigError: shards are missing, too many, or of another size.
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
