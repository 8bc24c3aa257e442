"""Stages where they stand: most on one rank, those of a bidirectional schedule on several."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar, Union

from pipert.errors import ConfigError

if TYPE_CHECKING:
    from pipert.plan import Plan

T = TypeVar("T")

Replica = tuple[int, int]
"""A stage where it stands: (rank, stage)."""
ByStage = Union[Mapping[int, T], Mapping[Replica, T], Mapping[Union[int, Replica], T]]  # noqa: UP007
"""Something for each stage of a process: by its number, or by (rank, stage) where several of its ranks hold it."""


def replicas(plan: Plan, ranks: Collection[int]) -> list[Replica]:
    """List what ``ranks`` hold, by stage and then by rank."""
    return [(rank, stage) for stage in range(plan.num_stages) for rank in plan.holders(stage) if rank in ranks]


def by_replica(plan: Plan, given: ByStage[T], ranks: Collection[int]) -> dict[Replica, T]:
    """Return what is given for each replica on ``ranks``, the ranks of this process, in the order of :func:`replicas`.

    Raises:
        ConfigError: something is missing or too much, or a number could mean several replicas.
    """
    wanted = replicas(plan, ranks)
    found: dict[Replica, T] = {}
    for key, value in given.items():
        meant = [replica for replica in wanted if key in (replica, replica[1])]
        if len(meant) > 1:
            raise ConfigError(
                f"stage {key} stands on ranks {_list([rank for rank, _ in meant])}, which are all here: give each its "
                f"own, by {' and '.join(map(str, meant))} (rank, stage)"
            )
        if not meant or meant[0] in found:
            raise _misfit(plan, wanted, given, ranks)
        found[meant[0]] = value
    if len(found) < len(wanted):
        raise _misfit(plan, wanted, given, ranks)
    return {replica: found[replica] for replica in wanted}


def _misfit(plan: Plan, wanted: list[Replica], given: ByStage[T], ranks: Collection[int]) -> ConfigError:
    stages = [stage for _, stage in wanted]
    keys = [stage if stages.count(stage) == 1 else (rank, stage) for rank, stage in wanted]
    on = f"rank {_list(ranks)}" if len(ranks) == 1 else f"ranks {_list(ranks)}"
    return ConfigError(
        f"the plan puts stages {_list(keys)} on {on} (of {plan.num_ranks} ranks and {plan.num_stages} stages), but "
        f"stages {_list(given)} were given; is the plan for other ranks?"
    )


def _list(values: Collection[object]) -> str:
    return ", ".join(map(str, values)) or "none"
