"""An independent simulator: plain Python, step by step through time, sharing nothing with the native one.

It looks at every lane's next op at every moment, and so needs no order of the rows; it is slow and easy to believe.
"""

from __future__ import annotations

import re

from pipert import Costs, Plan
from pipert.ops import LaneKind


def op_cost(text: str, plan: Plan, costs: Costs, stages, rank: int) -> float:
    """The time of a compute op on its rank; a pair is the sum of its parts, times the overlap."""
    total = 0.0
    for kind in re.findall(r"OPT|VALIDATE", text):
        total += sum(getattr(stages[stage], kind.lower()) for stage in plan.chunks(rank))
    for stage, kind, microbatch in re.findall(r"(\d+)([FBIWR])(\d+)", text):
        cost = stages[int(stage)]
        time = {"F": cost.F, "B": cost.full_backward, "I": cost.I, "W": cost.W, "R": cost.recompute}[kind]
        total += time * (cost.microbatch_scale[int(microbatch)] if cost.microbatch_scale else 1)
    for kind in re.findall(r"^\d+(EMBED_W|EMBED|S|T)\d+$", text):
        total += getattr(costs.vocab, kind if kind in "ST" else kind.lower())
    total *= costs.overlap if "OVERLAP" in text else 1
    return total / (costs.rank_speed[rank] if costs.rank_speed else 1)


def collective_cost(text: str, costs: Costs, stages) -> float:
    """The time of a collective."""
    if text.startswith("V"):
        return getattr(costs.vocab, text.rstrip("0123456789").lower())
    stage, kind = re.fullmatch(r"(\d+)(\D+)", text).groups()
    return getattr(stages[int(stage)], kind.lower())


def transfer_times(costs: Costs, source: int, destination: int) -> tuple[float, float]:
    """(latency, time for which the edge is occupied)."""
    latency, bandwidth = costs.p2p, costs.bandwidth
    if (source, destination) in costs.links:
        link = costs.links[source, destination]
        latency = latency if link.latency is None else link.latency
        bandwidth = bandwidth if link.bandwidth is None else link.bandwidth
    return latency, costs.message_bytes / bandwidth if bandwidth else 0.0


def run(plan: Plan, costs: Costs, held_up: dict[int, float] | None = None) -> tuple[list[float], list[float]]:
    """Start and end of every op; the ops ``held_up``, no transfers, take so much longer."""
    held_up = held_up or {}
    stages = costs.for_plan(plan)
    lanes = [[op for op in range(plan.num_ops) if plan.op_lane[op] == lane] for lane in range(len(plan.lanes))]
    deps = [plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]] for op in range(plan.num_ops)]
    members: dict[tuple[str, int], list[int]] = {}  # of a meeting, its op on each rank; of others the op itself
    for op, text in enumerate(plan.op_text):
        members.setdefault((text, -1 if text.startswith("V") else op), []).append(op)
    start: dict[int, float] = {}
    end: dict[int, float] = {}
    remaining: dict[int, float] = {}  # running compute ops
    occupied = {lane: 0.0 for lane, ops in enumerate(lanes) if "SEND" in "".join(plan.op_text[op] for op in ops[:1])}
    cursor = [0] * len(lanes)
    now = 0.0

    def ended(op):
        return op in end and end[op] <= now

    while len(start) < plan.num_ops or remaining:
        moved = True
        while moved:
            moved = False
            for lane, ops in enumerate(lanes):
                if cursor[lane] == len(ops) or any(other in remaining for other in ops):
                    continue
                op = ops[cursor[lane]]
                if plan.lanes[lane].kind is LaneKind.COLLECTIVE:
                    met = members[plan.op_text[op], -1 if plan.op_text[op].startswith("V") else op]
                    rows = [(plan.op_lane[one], lanes[plan.op_lane[one]], one) for one in met]
                    if all(
                        cursor[its_lane] < len(its_ops)
                        and its_ops[cursor[its_lane]] == one
                        and all(ended(other) for other in (*deps[one], *its_ops[: cursor[its_lane]]))
                        for its_lane, its_ops, one in rows
                    ):
                        for its_lane, _, one in rows:
                            start[one] = now
                            end[one] = now + collective_cost(plan.op_text[op], costs, stages) + held_up.get(op, 0.0)
                            cursor[its_lane] += 1
                        moved = True
                    continue
                if not all(ended(dep) for dep in deps[op]) or "RECV" in plan.op_text[op]:
                    continue
                if lane in occupied:
                    recv = op + 1
                    other = plan.op_lane[recv]
                    if occupied[lane] > now or lanes[other][cursor[other]] != recv:
                        continue
                    if not all(ended(dep) for dep in deps[recv]):
                        continue
                    start[op] = start[recv] = now
                    latency, occupancy = transfer_times(costs, plan.lanes[lane].rank, plan.lanes[lane].peer)
                    occupied[lane] = end[op] = now + (occupancy if re.search(r"SEND_[FB]", plan.op_text[op]) else 0.0)
                    end[recv] = end[op] + latency
                    cursor[other] += 1
                else:
                    start[op] = now
                    remaining[op] = op_cost(plan.op_text[op], plan, costs, stages, plan.lanes[lane].rank)
                    remaining[op] += held_up.get(op, 0.0)
                cursor[lane] += 1
                moved = True
        rate = 1.0 if costs.host_cores is None else min(1.0, costs.host_cores / max(1, len(remaining)))
        later = [now + work / rate for work in remaining.values()]
        later += [time for time in end.values() if time > now]
        if not later:
            break
        step = min(later) - now
        for op in list(remaining):
            remaining[op] -= step * rate
            if remaining[op] <= 1e-12:
                del remaining[op]
                end[op] = now + step
        now += step
    assert len(end) == plan.num_ops, "the plan came to a halt"
    return [start[op] for op in range(plan.num_ops)], [end[op] for op in range(plan.num_ops)]
