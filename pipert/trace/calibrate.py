"""Costs from a trace."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from pipert.costs import Costs, StageCosts, VocabCosts
from pipert.errors import ConfigError
from pipert.ir import Op
from pipert.ops import LaneKind, OpKind, Scope
from pipert.trace.report import check_whole

if TYPE_CHECKING:
    from pipert.trace.trace import Trace

_TIMES = {
    OpKind.FORWARD: "F",
    OpKind.INPUT_GRAD: "I",
    OpKind.WEIGHT_GRAD: "W",
    OpKind.BACKWARD: "B",
    OpKind.RECOMPUTE: "R",
    OpKind.UNSHARD: "unshard",
    OpKind.RESHARD: "reshard",
    OpKind.REDUCE_GRAD: "reduce_grad",
}


def calibrate(trace: Trace) -> Costs:
    """Take the costs of ops from a step, measured (then they are in ms) or simulated.

    The time of each (stage, kind) is the median over its ops; the latency of a transfer the median of the time
    from the end of the op that made the message to its arrival, over those transfers whose receiver was ready by then;
    the overlap the median of a pair's time over the sum of its parts'. A stage of which only full backwards were seen
    gets halves of them as its I and W. A pass over the vocabulary takes the median over all ranks, a meeting that of
    the time from when the last rank came to when the last one left. Activation sizes are not in a trace: a rank holds
    1 per microbatch from F to I, and nothing from S to T.

    Raises:
        ConfigError: the trace lacks ops, or has no forward or no backward of some stage outside of a pair.
    """
    check_whole(trace)
    scale = 1e-6 if trace.unit == "ns" else 1.0
    seen: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for op, item in enumerate(trace.plan.ops):
        if item.kind in _TIMES:
            seen[item.stage, _TIMES[item.kind]].append((trace.end[op] - trace.start[op]) * scale)
    stages = []
    for stage, share in enumerate(Costs.per_rank().for_plan(trace.plan)):
        times = {name: median(seen[stage, name]) for name in _TIMES.values() if (stage, name) in seen}
        stages.append(_stage_costs(stage, times, share.act))
    latencies = [latency * scale for latency in _latencies(trace)] or [0.0]
    overlaps = [share * scale for share in _overlaps(trace, stages)] or [1.0]
    costs = Costs.per_stage(stages, p2p=median(latencies), overlap=median(overlaps), vocab=_vocab_costs(trace, scale))
    return dataclasses.replace(costs, recut=True)


def _stage_costs(stage: int, times: dict[str, Any], act: float) -> StageCosts:
    if "F" not in times:
        raise ConfigError(f"the trace has no forward of stage {stage} outside of an overlapped pair")
    if "B" in times:
        times = {"I": times["B"] / 2, "W": times["B"] / 2} | times
    return StageCosts(**({"I": 0.0, "W": 0.0} | times), act=act)


def _vocab_costs(trace: Trace, scale: float) -> VocabCosts | None:
    """Take the costs of the passes over the vocabulary; None of a step that has none."""
    rows: defaultdict[Op, list[int]] = defaultdict(list)
    for row, op in enumerate(trace.plan.ops):
        if op.kind.scope in (Scope.SHARD, Scope.MEETING):
            rows[op].append(row)
    times: defaultdict[OpKind, list[float]] = defaultdict(list)
    for op, same in rows.items():  # an op of a shard once, a meeting once for each rank
        came, left = (max(column[row] for row in same) for column in (trace.start, trace.end))
        times[op.kind].append((left - came) * scale)
    if not times:
        return None
    return VocabCosts(**{"T": 0.0} | {VocabCosts.name_of(kind): median(found) for kind, found in times.items()})


def _overlaps(trace: Trace, stages: Sequence[StageCosts]) -> Iterator[float]:
    """Go through the pairs: time of each over that of its parts, which is in the unit of ``stages``."""
    for op, item in enumerate(trace.plan.ops):
        apart = sum(stages[part.stage].time_of(part.kind) for part in item.parts)
        if apart > 0:
            yield (trace.end[op] - trace.start[op]) / apart


def _latencies(trace: Trace) -> Iterator[float]:
    """Go through the transfers whose message was made when its receiver was ready."""
    plan, end = trace.plan, trace.end

    def deps_end(op: int) -> float:
        return max((end[dep] for dep in plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]]), default=0.0)

    previous: dict[int, float] = {}  # per send lane, when it was free
    for send, item in enumerate(plan.ops):
        if item.kind.lane is not LaneKind.SEND:
            continue
        made, lane = deps_end(send), plan.op_lane[send]
        offered = deps_end(send + 1) if trace.ready is None else trace.ready[send + 1]
        if max(offered, previous.get(lane, 0.0)) <= made:
            yield max(0.0, end[send + 1] - made)
        previous[lane] = end[send]
