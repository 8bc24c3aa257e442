"""Random programs and costs, to compare implementations on."""

from __future__ import annotations

import dataclasses
import random

import pipert
from pipert import Costs, Plan, PlanError
from pipert.ir import Op, Program
from pipert.sim import Link, StageCosts


def random_program(rng: random.Random) -> Program:
    """Any order that respects the data flow: random paths, whole and split backwards mixed, some recomputation."""
    num_ranks, num_microbatches = rng.randint(1, 4), rng.randint(1, 5)
    num_stages = num_ranks + rng.randint(0, num_ranks)
    paths = [
        [*range(num_ranks), *rng.choices(range(num_ranks), k=num_stages - num_ranks)] for _ in range(rng.randint(1, 3))
    ]
    for path in paths:
        rng.shuffle(path)
    path_of = rng.choices(range(len(paths)), k=num_microbatches)
    last = num_stages - 1
    waits: dict[str, set[str]] = {}
    for stage in range(num_stages):
        recomputed = rng.random() < 0.25
        for mb in range(num_microbatches):
            name = {kind: f"{stage}{kind}{mb}" for kind in "FRBIW"}
            waits[name["F"]] = {f"{stage - 1}F{mb}"} if stage else set()
            needs = {name["F"]} if stage == last else {name["F"], f"{stage + 1}G{mb}"}
            if recomputed:
                waits[name["R"]] = {name["F"]}
                needs |= {name["R"]}
            if rng.random() < 0.5:
                waits[name["B"]] = needs
            else:
                waits[name["I"]] = needs
                waits[name["W"]] = {name["I"]}
    ranks: list[list[Op]] = [[] for _ in range(num_ranks)]
    done: set[str] = set()
    while waits:
        free = [text for text, needs in waits.items() if needs <= done]
        text = rng.choice(free)
        del waits[text]
        done |= {text, text.replace("B", "G").replace("I", "G")}
        op = Op.parse(text)
        ranks[paths[path_of[op.microbatch]][op.stage]].append(op)
    return Program("random", tuple(map(tuple, paths)), tuple(path_of), tuple(map(tuple, ranks)))


def with_collectives(rng: random.Random, plain: Program) -> Program:
    """The same with its stages gathered before use, let go now and then, and their gradients summed at the end."""
    rows = []
    for rank, ops in enumerate(plain.ranks):
        row: list[Op] = []
        whole: set[int] = set()
        for op in ops:
            if op.stage not in whole:
                row.append(Op.parse(f"{op.stage}UNSHARD"))
                whole.add(op.stage)
            row.append(op)
            if rng.random() < 0.2:
                row.append(Op.parse(f"{op.stage}RESHARD"))
                whole.discard(op.stage)
        rows.append((*row, *(Op.parse(f"{stage}REDUCE_GRAD") for stage in plain.chunks(rank))))
    return Program(plain.name, plain.paths, plain.path_of, tuple(rows))


def pair_up(rng: random.Random, program: Program, share: float = 0.2) -> Program:
    """Make pairs of some neighbours: an F with a B or an I, in either order."""

    def paired(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        row: list[Op] = []
        for op in ops:
            kinds = {row[-1].kind.text, op.kind.text} if row else set()
            if kinds in ({"F", "B"}, {"F", "I"}) and rng.random() < share:
                row[-1] = Op.pair(row[-1], op)
            else:
                row.append(op)
        return tuple(row)

    return dataclasses.replace(program, ranks=tuple(map(paired, program.ranks)))


def random_plans(seed: int, count: int, *, collectives: bool = False) -> list[Plan]:
    """As many random plans; orders that would deadlock are left out."""
    rng = random.Random(seed)
    plans: list[Plan] = []
    while len(plans) < count:
        program = random_program(rng)
        if collectives:
            program = with_collectives(rng, program)
        try:
            plans.append(pipert.compile(program, recv_depth=rng.randint(1, 3)))
        except PlanError:
            continue
    return plans


def random_costs(rng: random.Random, plan: Plan, *, bandwidth: bool = False, cores: float | None = None) -> Costs:
    """Costs in which nothing follows from anything else, and ranks, links and microbatches differ."""

    def stage() -> StageCosts:
        act = rng.uniform(0.5, 2)
        act_w = act * rng.random()
        times = {kind: rng.uniform(0.2, 2) for kind in "FIWBR"}
        scale = [rng.uniform(0.5, 2) for _ in range(plan.num_microbatches)] if rng.random() < 0.7 else []
        times |= {name: rng.uniform(0, 1) for name in ("unshard", "reshard", "reduce_grad")}
        return StageCosts(**times, act=act, act_w=act_w, act_kept=act_w * rng.random(), microbatch_scale=scale)

    def link() -> Link:
        limit = rng.uniform(2, 20) if bandwidth and rng.random() < 0.5 else None
        return Link(rng.choice((None, 0.0, rng.uniform(0, 3))), limit)

    edges = [(source, target) for source in range(plan.num_ranks) for target in range(plan.num_ranks)]
    return Costs.per_stage(
        [stage() for _ in range(plan.num_stages)],
        p2p=rng.uniform(0, 1.5),
        bandwidth=rng.uniform(5, 20) if bandwidth else None,
        message_bytes=10.0 if bandwidth else 0.0,
        host_cores=cores,
        links={edge: link() for edge in edges if edge[0] != edge[1] and rng.random() < 0.4},
        rank_speed=[rng.uniform(0.5, 2) for _ in range(plan.num_ranks)] if rng.random() < 0.7 else (),
        overlap=rng.uniform(0.5, 1),
    )
