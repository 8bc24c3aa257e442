"""The prediction: the run's plan, simulated with what its ops cost on this machine."""

from __future__ import annotations

import os
import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence

from pipert.costs import Costs, StageCosts, VocabCosts
from pipert.plan import Plan
from pipert.replicas import Replica
from pipert.sim import Report, simulate
from pipert.trace import Trace, measure


def predict(plan: Plan, costs: Costs, one_process: bool) -> Report:
    """Return the predicted step, in ms.

    Args:
        plan: what ran.
        costs: in ms.
        one_process: whether one process ran all ranks, which computes one op after another in the plan's order.
    """
    return _serial(plan, costs) if one_process else simulate(plan, costs)


def measured_costs(
    plan: Plan,
    measured: Iterable[Mapping[Replica, StageCosts]],
    shards: Sequence[Mapping[str, float]],
    num_cores: int | None,
) -> Costs:
    """Return the costs of each stage, the mean over its replicas, and of the passes of a split vocabulary.

    Args:
        plan: what ran.
        measured: per process, what its stages took.
        shards: per shard of the vocabulary what its passes took, by the names of `VocabCosts`; empty if it is whole.
        num_cores: how many cores the ranks share; None if each has its own.
    """
    per_stage: list[list[StageCosts]] = [[] for _ in range(plan.num_stages)]
    for each in measured:
        for (_, stage), costs in each.items():
            per_stage[stage].append(costs)
    vocab = None
    if shards:
        vocab = VocabCosts(**{name: statistics.mean(shard[name] for shard in shards) for name in shards[0]})
    return Costs.per_stage(list(map(_mean, per_stage)), host_cores=num_cores, vocab=vocab)


def shared_cores(num_ranks: int) -> int | None:
    """Return how many cores the ranks share; None if each has its own."""
    num_cores = len(os.sched_getaffinity(0))
    return num_cores if num_cores < num_ranks else None


def _mean(replicas: Sequence[StageCosts]) -> StageCosts:
    values = {name: [getattr(costs, name) for costs in replicas] for name in ("F", "I", "W", "B", "R")}
    known = {name: [value for value in of_kind if value is not None] for name, of_kind in values.items()}
    return StageCosts(**{name: statistics.mean(of_kind) for name, of_kind in known.items() if of_kind})


def _serial(plan: Plan, costs: Costs) -> Report:
    stages = costs.for_plan(plan)
    start, end = array("d"), array("d")
    now = 0.0
    for op_id, op in enumerate(plan.ops):
        start.append(now)
        now += costs.op_time(op, plan.rank_of(op_id), stages)
        end.append(now)
    return measure(Trace(plan, start, end), costs)
