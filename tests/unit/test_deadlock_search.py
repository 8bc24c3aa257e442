import copy
import random

import pytest
from deadlock_search import plan_can_get_stuck, plan_can_go_wrong, program_can_get_stuck

import pipert
from pipert import schedules
from pipert.ir import Op, Program
from pipert.ops import OpKind
from pipert.passes import recompute


def random_program(rng, paths, num_microbatches):
    """Every rank's ops in a random order in which F comes before B or I, I before W, and inputs before what reads them
    on the same rank."""
    ranks = [[] for _ in range(max(map(max, paths)) + 1)]
    path_of = tuple(rng.randrange(len(paths)) for _ in range(num_microbatches))
    split = rng.random() < 0.3
    for microbatch in range(num_microbatches):
        for rank, ops in enumerate(ranks):
            stages = [stage for stage, holder in enumerate(paths[path_of[microbatch]]) if holder == rank]
            chain = [Op(OpKind.FORWARD, stage, microbatch) for stage in stages]
            for stage in reversed(stages):
                if split:
                    chain += [Op(OpKind.INPUT_GRAD, stage, microbatch), Op(OpKind.WEIGHT_GRAD, stage, microbatch)]
                else:
                    chain.append(Op(OpKind.BACKWARD, stage, microbatch))
            ops[:] = shuffle_together(rng, ops, chain)
    return Program("random", paths, path_of, tuple(map(tuple, ranks)))


def shuffle_together(rng, first, second):
    sources = [first] * len(first) + [second] * len(second)
    if rng.random() < 0.8:  # near the usual order, or next to nothing would run
        sources = [source for _, source in sorted(enumerate(sources), key=lambda pair: pair[0] + rng.random() * 6)]
    else:
        rng.shuffle(sources)
    iterators = {id(first): iter(first), id(second): iter(second)}
    return [next(iterators[id(source)]) for source in sources]


@pytest.mark.parametrize(
    ("paths", "num_microbatches", "count"),
    [
        ([(0, 1)], 3, 150),
        ([(0, 1, 2)], 2, 150),
        ([(0, 1, 1, 0)], 2, 150),
        ([(0, 1, 0, 1)], 2, 150),
        ([(0, 1, 2)], 3, 100),
        ([(0, 1), (1, 0)], 3, 150),
        ([(0, 1, 2), (2, 1, 0)], 3, 100),
    ],
)
def test_compile_refuses_just_the_programs_that_can_get_stuck(paths, num_microbatches, count):
    rng = random.Random(f"{paths}{num_microbatches}")
    verdicts = []
    for _ in range(count):
        program = random_program(rng, tuple(paths), num_microbatches)
        recv_depth = rng.choice([1, 1, 2, 3])
        stuck = program_can_get_stuck(program, recv_depth)
        verdicts.append(stuck)
        if stuck:
            with pytest.raises(pipert.PlanError, match=r"deadlock at recv_depth \d: (?s:.)* waits for "):
                pipert.compile(program, recv_depth=recv_depth)
        else:
            pipert.compile(program, recv_depth=recv_depth)
    assert 0.05 < sum(verdicts) / count < 0.95, "the random programs must be of both kinds"


def reorder(rng, columns, num_moves):
    """Swap neighbours, a transfer's two rows being one, with every index following its op."""
    columns = copy.deepcopy(columns)
    ops = columns["ops"]
    deps = [ops["deps"][a:b] for a, b in zip(ops["dep_offsets"], ops["dep_offsets"][1:], strict=False)]
    blocks = []
    for op, text in enumerate(ops["text"]):
        if "RECV" in text:
            blocks[-1].append(op)
        else:
            blocks.append([op])
    for _ in range(num_moves):
        i = rng.randrange(len(blocks) - 1)
        blocks[i], blocks[i + 1] = blocks[i + 1], blocks[i]
    order = [op for block in blocks for op in block]
    row_of = {op: row for row, op in enumerate(order)}
    for name in ("text", "lane", "slot"):
        ops[name] = [ops[name][op] for op in order]
    new_deps = [sorted(row_of[dep] for dep in deps[op]) for op in order]
    ops["deps"] = [dep for of_op in new_deps for dep in of_op]
    ops["dep_offsets"] = [0]
    for of_op in new_deps:
        ops["dep_offsets"].append(ops["dep_offsets"][-1] + len(of_op))
    return columns


@pytest.mark.parametrize(
    "program",
    [
        schedules.build("1f1b", num_ranks=2, num_microbatches=3),
        recompute(schedules.build("1f1b", num_ranks=3, num_microbatches=2), [1]),
        schedules.build("zb-h1", num_ranks=2, num_microbatches=3),
        schedules.build("zb-v", num_ranks=2, num_microbatches=2),
        schedules.build("gpipe", num_ranks=3, num_microbatches=3),
        schedules.forward_only([(0, 1, 2)], [0] * 3),
        schedules.build("chimera", num_ranks=2, num_microbatches=2),
    ],
    ids=lambda program: program.name,
)
def test_the_verdict_on_reordered_plans(program):
    rng = random.Random(program.name)
    columns = pipert.compile(program).to_dict()
    verdicts = []
    for _ in range(200):
        changed = reorder(rng, columns, rng.choice([1, 2, 4, 30, 200]))
        verdicts.append(verdict_on(changed))
        queues_stuck = plan_can_get_stuck(changed, one_queue_per_rank=True)
        lanes_stuck = plan_can_get_stuck(changed, one_queue_per_rank=False)
        if verdicts[-1] == "valid":
            assert not queues_stuck
            assert not lanes_stuck
            assert not plan_can_go_wrong(changed)
        elif verdicts[-1] == "wrong":
            assert queues_stuck or plan_can_go_wrong(changed)
        else:
            assert queues_stuck
            assert lanes_stuck == (verdicts[-1] == "lanes deadlock")
    assert {"valid", "queues deadlock"} <= set(verdicts)


def verdict_on(columns):
    try:
        pipert.Plan.from_dict(columns)
    except pipert.PlanError as error:
        if not str(error).startswith("deadlock"):
            return "wrong"
        return "queues deadlock" if "share one queue" in str(error) else "lanes deadlock"
    return "valid"
