"""Split vocabularies before a judge that tries every interleaving, and shares no code with lowering and verifier."""

import copy
import json
import random

import pytest
from deadlock_search import plan_can_get_stuck, plan_can_go_wrong

import pipert
from pipert import schedules
from pipert.ir import Op, Program
from pipert.passes import vocab_parallel


def columns_of(plan: pipert.Plan, algorithm: int) -> dict:
    return json.loads(json.dumps(plan.to_dict())) | {"algorithm": algorithm}


def rows_of(columns: dict) -> dict:
    return {key: value for key, value in columns.items() if key != "algorithm"}


def small(name: str, algorithm: int, microbatches: int) -> pipert.Plan:
    program = schedules.build(name, num_ranks=2, num_microbatches=microbatches)
    return pipert.compile(vocab_parallel(program, algorithm))


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize(("name", "microbatches"), [("1f1b", 3), ("zb-h1", 3), ("zb-v", 2), ("forward-only", 2)])
def test_no_interleaving_gets_stuck_or_goes_wrong(name: str, microbatches: int, algorithm: int) -> None:
    if name == "forward-only":
        plan = pipert.compile(vocab_parallel(schedules.forward_only([[0, 1]], [0] * microbatches), algorithm))
    else:
        plan = small(name, algorithm, microbatches)
    columns = columns_of(plan, algorithm)
    assert not plan_can_get_stuck(columns, one_queue_per_rank=True)
    assert not plan_can_get_stuck(columns, one_queue_per_rank=False)
    assert not plan_can_go_wrong(columns)


def without(columns: dict, op: int, dep: int) -> dict:
    changed = copy.deepcopy(columns)
    ops = changed["ops"]
    index = ops["dep_offsets"][op] + dep
    del ops["deps"][index]
    ops["dep_offsets"] = [at - (at > index) for at in ops["dep_offsets"]]
    return changed


@pytest.mark.parametrize("algorithm", [1, 2])
def test_the_verifier_misses_a_dependency_where_something_could_go_wrong(algorithm: int) -> None:
    columns = columns_of(small("1f1b", algorithm, 1), algorithm)
    offsets = columns["ops"]["dep_offsets"]
    verdicts = []
    for op in range(len(offsets) - 1):
        for dep in range(offsets[op + 1] - offsets[op]):
            changed = without(columns, op, dep)
            wrong = plan_can_go_wrong(changed)
            assert accepted(rows_of(changed)) == (not wrong), (columns["ops"]["text"][op], dep)
            verdicts.append(wrong)
    assert True in verdicts
    assert False in verdicts


def accepted(columns: dict) -> bool:
    try:
        pipert.Plan.from_dict(columns)
    except pipert.PlanError:
        return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_rows_in_another_order_are_refused_where_ranks_could_wait_for_each_other(seed: int) -> None:
    """Two ops of a row, swapped: what compiles cannot get stuck, and what cannot get stuck compiles."""
    rng = random.Random(seed)
    program = vocab_parallel(schedules.build("1f1b", num_ranks=2, num_microbatches=2), 1 + seed % 2)
    rank = rng.randrange(2)
    row = list(program.ranks[rank])
    place = rng.randrange(len(row) - 1)
    row[place], row[place + 1] = row[place + 1], row[place]
    rows = [*program.ranks]
    rows[rank] = tuple(row)
    changed = Program(program.name, program.paths, program.path_of, tuple(rows))
    assert compiles(changed) == (runs(rows) and is_one_algorithm(rows))


def compiles(program: Program) -> bool:
    try:
        pipert.compile(program)
    except pipert.PlanError:
        return False
    return True


def is_one_algorithm(rows) -> bool:
    orders = set()
    for rank, row in enumerate(rows):
        texts = [str(op) for op in row]
        orders |= {texts.index(f"{rank}T{m}") < texts.index(f"VGRAD{m}") for m in range(2)}
    return len(orders) == 1


def runs(rows) -> bool:
    """Whether the rows can be run one op after another, a meeting when it is next on both ranks.

    A transfer is there when its maker has run: two ranks and their two edges leave no other way to wait.
    """
    done: set[str] = set()
    at = [0, 0]
    while at != [len(rows[0]), len(rows[1])]:
        heads = [str(row[i]) if i < len(row) else "" for row, i in zip(rows, at, strict=True)]
        if heads[0] == heads[1] and heads[0].startswith("V"):
            if not all(may_run(heads[0], rank, done) for rank in range(2)):
                return False
            done |= {f"{rank} {heads[0]}" for rank in range(2)}
            at = [i + 1 for i in at]
            continue
        ready = [r for r in range(2) if heads[r] and not heads[r].startswith("V") and may_run(heads[r], r, done)]
        if not ready:
            return False
        done.add(heads[ready[0]])
        at[ready[0]] += 1
    return True


def may_run(text: str, rank: int, done: set[str]) -> bool:
    op = Op.parse(text)
    m, kind = op.microbatch, op.kind.text
    needed = {
        "F": [f"0F{m}"] if op.stage == 1 else [f"0 VEMBED{m}"],
        "B": [f"1F{m}", f"1 VGRAD{m}"] if op.stage == 1 else [f"0F{m}", f"1B{m}"],
        "S": [f"{rank} VBCAST{m}"],
        "T": [f"{rank} VSTATS{m}"],
        "EMBED_W": [f"{rank} VEMBED_GRAD{m}"],
        "VEMBED": [f"{rank}EMBED{m}"],
        "VBCAST": [f"1F{m}"] if rank == 1 else [],
        "VSTATS": [f"{rank}S{m}"],
        "VGRAD": [f"{rank} VSTATS{m}"],
        "VEMBED_GRAD": [f"0B{m}"] if rank == 0 else [],
    }.get(kind, [])
    return all(each in done for each in needed)
