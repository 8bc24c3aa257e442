"""The pass that splits the vocabulary over the ranks: text in, text out, and what it promises for every schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipert
from pipert import ConfigError, Costs, PlanError, passes, schedules
from pipert.activation import peak_activation
from pipert.ir import Op, Program
from pipert.ops import OpKind, Scope
from pipert.passes.vocab_parallel import NUM_BARRIERS
from pipert.sim import StageCosts, VocabCosts

ONE_PATH = [
    name
    for name, schedule in schedules.SCHEDULES.items()
    if not schedule.from_costs and len(set(schedules.build(name, num_ranks=4, num_microbatches=4).paths)) == 1
]


def program(*rows: str, num_microbatches: int = 1, stage_ranks: tuple[int, ...] | None = None) -> Program:
    ranks = tuple(tuple(map(Op.parse, row.split())) for row in rows)
    return Program.single_path("mine", stage_ranks or tuple(range(len(rows))), num_microbatches, ranks)


def texts(made: Program) -> list[str]:
    return [" ".join(map(str, ops)) for ops in made.ranks]


def of_stages(made: Program) -> Program:
    """All but what is about the vocabulary."""
    rows = tuple(tuple(op for op in ops if op.unpacked) for ops in made.ranks)
    return Program(made.name, made.paths, made.path_of, rows)


def test_algorithm_1() -> None:
    made = passes.vocab_parallel(program("0F0 0B0", "1F0 1B0"), 1)
    assert made.name == "mine-vocab-1"
    assert texts(made) == [
        "0EMBED0 VEMBED0 0F0 VBCAST0 0S0 VSTATS0 0T0 VGRAD0 0B0 VEMBED_GRAD0 0EMBED_W0",
        "1EMBED0 VEMBED0 1F0 VBCAST0 1S0 VSTATS0 1T0 VGRAD0 1B0 VEMBED_GRAD0 1EMBED_W0",
    ]


def test_algorithm_2_leaves_t_for_later() -> None:
    made = passes.vocab_parallel(program("0F0 0B0", "1F0 1B0"), 2)
    assert texts(made) == [
        "0EMBED0 VEMBED0 0F0 VBCAST0 0S0 VSTATS0 VGRAD0 0T0 0B0 VEMBED_GRAD0 0EMBED_W0",
        "1EMBED0 VEMBED0 1F0 VBCAST0 1S0 VSTATS0 VGRAD0 1B0 VEMBED_GRAD0 1T0 1EMBED_W0",
    ]


def test_a_program_without_backward_has_no_gradients() -> None:
    made = passes.vocab_parallel(program("0F0", "1F0"), 2)
    assert texts(made) == [
        "0EMBED0 VEMBED0 0F0 VBCAST0 0S0 VSTATS0",
        "1EMBED0 VEMBED0 1F0 VBCAST0 1S0 VSTATS0",
    ]
    assert pipert.compile(made).num_ops == 2 * 6 + 2


def test_backwards_start_later_where_that_is_worth_a_microbatch() -> None:
    made = passes.vocab_parallel(schedules.build("1f1b", num_ranks=2, num_microbatches=4), 2)
    assert texts(of_stages(made)) == ["0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3", "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3"]
    split = passes.vocab_parallel(schedules.build("zb-h1", num_ranks=4, num_microbatches=8), 2)
    assert max(peak_activation(of_stages(split), Costs.per_rank(act_w=1))) == 4  # weight gradients fill the wait


@pytest.mark.parametrize(
    ("late", "row", "expected"),
    [
        (0, "0F0 0F1 0B0 0B1", "0F0 0F1 0B0 0B1"),
        (1, "0F0 0F1 0B0 0F2 0B1 0B2", "0F0 0F1 0F2 0B0 0B1 0B2"),
        (2, "0F0 0B0 0F1 0B1 0F2 0B2 0F3 0B3", "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3"),
        (9, "0F0 0B0 0F1 0B1", "0F0 0F1 0B0 0B1"),
        (1, "0F0 0I0 0W0 0F1 0I1 0W1", "0F0 0F1 0I0 0W0 0I1 0W1"),
        (1, "0F0 0F1 0I0 0F2 0I1 0W0 0I2 0W1 0W2", "0F0 0F1 0F2 0I0 0I1 0W0 0W1 0I2 0W2"),
        (1, "0F0 0I0 0W0 0F1 0B1", "0F0 0F1 0I0 0W0 0B1"),
        (1, "0F0 0B0 0F1 0I1 0W1", "0F0 0F1 0B0 0I1 0W1"),
        (1, "0F0 0R0 0B0 0F1 0R1 0B1", "0F0 0F1 0R0 0B0 0R1 0B1"),
        (1, "0F0 0F1 (0F2;0B0)OVERLAP_F_B 0B1 0B2", "0F0 0F1 0F2 0B0 0B1 0B2"),
        (1, "0F0 0F1 0B0 (0F2;0B1)OVERLAP_F_B 0B2", "0F0 0F1 (0F2;0B0)OVERLAP_F_B 0B1 0B2"),
    ],
)
def test_delay_backward(late: int, row: str, expected: str) -> None:
    num_microbatches = row.count("F") - row.count("F_B")
    assert texts(passes.delay_backward(program(row, num_microbatches=num_microbatches), late)) == [expected]


def test_a_rank_of_two_chunks_delays_two_backwards() -> None:
    row = "0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"
    made = passes.delay_backward(program(row, num_microbatches=2, stage_ranks=(0, 0)), 1)
    assert texts(made) == ["0F0 1F0 0F1 1F1 1B0 0B0 1B1 0B1"]


def check(base: Program, algorithm: int, costs: Costs | None) -> None:
    made = passes.vocab_parallel(base, algorithm, costs)
    passes.validate(made)
    pipert.compile(made)
    before, after = of_stages(base), of_stages(made)
    for ours, theirs in zip(after.ranks, before.ranks, strict=True):
        for kinds in ({OpKind.FORWARD}, {OpKind.BACKWARD, OpKind.INPUT_GRAD}, {OpKind.WEIGHT_GRAD}):
            orders = [[part for op in ops for part in op.unpacked if part.kind in kinds] for ops in (ours, theirs)]
            if OpKind.WEIGHT_GRAD in kinds:
                assert set(orders[0]) == set(orders[1])
            else:
                assert orders[0] == orders[1]
        assert sum(len(op.unpacked) for op in ours) == sum(len(op.unpacked) for op in theirs)
    meetings = [[op for op in ops if op.kind.scope is Scope.MEETING] for ops in made.ranks]
    assert all(row == meetings[0] for row in meetings)
    for measure in (Costs.per_rank(), Costs.per_rank(act_w=1.0)):
        if any(part.kind is not OpKind.FORWARD for op in base.ranks[0] for part in op.unpacked):
            most = max(peak_activation(before, measure)) + NUM_BARRIERS[algorithm]
            assert max(peak_activation(after, measure)) <= most + 1e-9
    for ops in made.ranks:
        held = 0
        for op in ops:
            held += (op.kind is OpKind.SCORE) - (op.kind is OpKind.SCORE_W)
            assert held <= 2 or not any(op.kind is OpKind.SCORE_W for op in ops)


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("name", ONE_PATH)
@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (3, 7), (4, 8), (5, 3)])
def test_every_schedule(name: str, p: int, m: int, algorithm: int) -> None:
    check(schedules.build(name, num_ranks=p, num_microbatches=m), algorithm, None)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    name, p, m = draw(st.sampled_from(ONE_PATH)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    vary = schedules.SCHEDULES[name].chunks_vary and name != "hanayo"
    chunks = draw(st.sampled_from([None, 1, 3])) if vary else None
    made = schedules.build(name, num_ranks=p, num_microbatches=m, num_chunks=chunks)
    if draw(st.booleans()):
        made = passes.split_backward(made)
    return passes.recompute(made, draw(st.sets(st.integers(0, made.num_stages - 1), max_size=3)))


TIMES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]) | st.floats(0, 3)


@settings(max_examples=60, deadline=None)
@given(programs(), st.sampled_from([1, 2]), st.data())
def test_whatever_ops_cost(base: Program, algorithm: int, data: st.DataObject) -> None:
    names = ("F", "I", "W", "B")
    stages = [StageCosts(**{name: data.draw(TIMES) for name in names}) for _ in range(base.num_stages)]
    vocab = VocabCosts(*(data.draw(TIMES) for _ in range(9)))
    speeds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=base.num_ranks, max_size=base.num_ranks))
    check(base, algorithm, Costs.per_stage(stages, p2p=data.draw(TIMES), rank_speed=speeds, vocab=vocab))


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("name", ["auto", "zb-1p", "zb-2p"])
def test_searched_schedules(name: str, algorithm: int) -> None:
    costs = Costs.per_rank(F=2, I=2.5, W=1, p2p=0.25, vocab=VocabCosts(S=0.5, T=0.75, vbcast=0.25, vgrad=0.25))
    check(schedules.build(name, num_ranks=3, num_microbatches=6, costs=costs), algorithm, costs)


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-h2", "zb-v", "v-half", "gpipe"])
def test_all_that_is_added_fits_where_ranks_are_busy_anyway(name: str, algorithm: int) -> None:
    """The step grows by S and T of all microbatches, and by no more than one of each for each barrier."""
    p, m = 4, 24
    costs = Costs.per_rank(vocab=VocabCosts(S=0.5, T=0.25))
    base = schedules.build(name, num_ranks=p, num_microbatches=m)
    before, after = (
        pipert.simulate(pipert.compile(made), costs).makespan
        for made in (base, passes.vocab_parallel(base, algorithm, costs))
    )
    assert m * 3.75 <= after <= before + m * 0.75 + (3 - algorithm) * 0.75


def test_a_memory_limit_is_kept() -> None:
    costs = Costs.per_rank(vocab=VocabCosts(act_s=0.25))
    base = schedules.build("1f1b", num_ranks=4, num_microbatches=12)
    free = passes.vocab_parallel(base, 2, costs)
    assert max(peak_activation(free, costs)) == 5.5
    tight = passes.vocab_parallel(base, 2, costs, memory_limit=4.5)
    assert max(peak_activation(tight, costs)) <= 4.5
    free_time, tight_time = (pipert.simulate(pipert.compile(made), costs).makespan for made in (free, tight))
    assert free_time < tight_time
    with pytest.raises(ConfigError, match=r"holds 4\.25 or more on its fullest rank, but the memory limit is 4$"):
        passes.vocab_parallel(base, 2, costs, memory_limit=4)


def test_peaks_of_the_simulator_are_those_of_the_order() -> None:
    costs = Costs.per_rank(act=1.0, act_w=0.5, vocab=VocabCosts(S=0.5, T=0.25, act_s=0.375))
    for name, algorithm in (("zb-v", 1), ("1f1b", 2), ("zb-h1", 2)):
        made = passes.vocab_parallel(schedules.build(name, num_ranks=3, num_microbatches=7), algorithm, costs)
        assert pipert.simulate(pipert.compile(made), costs).peak_activation == pytest.approx(
            peak_activation(made, costs)
        )


@pytest.mark.parametrize(
    ("base", "algorithm", "costs", "message"),
    [
        (program("0F0 0B0"), 3, None, "Algorithms 1 and 2, not 3"),
        (program("0F0 0B0"), 1, Costs.per_rank(), "give S and T with the others"),
        (schedules.build("chimera", num_ranks=2, num_microbatches=2), 1, None, "has replicas of its stages"),
        (passes.post_validation(program("0F0 0B0")), 1, None, "has post-validation"),
        (passes.shard(program("0F0 0B0")), 1, None, "has collectives: add those of sharded parameters after this pass"),
        (passes.vocab_parallel(program("0F0 0B0"), 1), 2, None, "has passes over the vocabulary already"),
    ],
)
def test_what_is_refused(base: Program, algorithm: int, costs: Costs | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        passes.vocab_parallel(base, algorithm, costs)


def test_faults_of_the_program_are_named() -> None:
    with pytest.raises(PlanError, match="0B0: expected either"):
        passes.vocab_parallel(program("0F0", "1F0 1B0"), 1)
    with pytest.raises(PlanError, match="waits in a circle"):
        passes.vocab_parallel(program("1F0 0F0 1B0 0B0", stage_ranks=(0, 0)), 1)


def test_post_validation_refuses_a_split_vocabulary() -> None:
    with pytest.raises(ConfigError, match="passes over the vocabulary, in which all ranks meet"):
        passes.post_validation(passes.vocab_parallel(program("0F0 0B0"), 1))


def test_parameters_are_sharded_afterwards() -> None:
    base = schedules.build("interleaved", num_ranks=2, num_microbatches=4)
    pipert.compile(passes.shard(passes.vocab_parallel(base, 2)))


FAULTS = [
    ("0S0", "", "rank 0: 0S0: expected it once, as there are passes over the vocabulary, got none"),
    ("VGRAD0", "", "rank 0: VGRAD0: expected it once"),
    ("0EMBED_W0", "", "rank 0: 0EMBED_W0: expected it once"),
    ("0S0", "0S0 0S0", "rank 0: 0S0: expected it once, got it twice"),
    ("0S0", "0S1", "rank 0: 0S1: expected a microbatch below 1, got 1"),
    ("0S0", "1S0", "rank 0: 1S0: expected it on rank 1, got it on rank 0"),
    ("0S0 VSTATS0", "VSTATS0 0S0", "rank 0: VSTATS0: expected it after 0S0, got it before"),
    ("VBCAST0 0S0", "0S0 VBCAST0", "rank 0: 0S0: expected it after VBCAST0, got it before"),
    ("VEMBED0 0F0", "0F0 VEMBED0", "rank 0: 0F0: expected it after VEMBED0, got it before"),
    ("VSTATS0 0T0", "0T0 VSTATS0", "rank 0: 0T0: expected it after VSTATS0, got it before"),
    ("0B0 VEMBED_GRAD0", "VEMBED_GRAD0 0B0", "rank 0: VEMBED_GRAD0: expected it after 0B0, got it before"),
    ("VEMBED_GRAD0 0EMBED_W0", "0EMBED_W0 VEMBED_GRAD0", "rank 0: 0EMBED_W0: expected it after VEMBED_GRAD0"),
    ("0T0 VGRAD0", "VGRAD0 0T0", "rank 1: 1T0: expected it after VGRAD0, as elsewhere, got it before"),
]


@pytest.mark.parametrize(("text", "instead", "message"), FAULTS)
def test_validate_names_what_is_wrong(text: str, instead: str, message: str) -> None:
    rows = texts(passes.vocab_parallel(program("0F0 0B0", "1F0 1B0"), 1))
    assert text in rows[0]
    with pytest.raises(PlanError) as error:
        passes.validate(program(rows[0].replace(text, instead, 1), rows[1]))
    assert message in str(error.value)


def test_validate_wants_one_order_of_meetings() -> None:
    rows = [
        "0F0 VBCAST0 0S0 VSTATS0 0F1 VBCAST1 0S1 VSTATS1",
        "1F0 VBCAST0 1S0 1F1 VBCAST1 VSTATS0 1S1 VSTATS1",
    ]
    message = "rank 1: VBCAST1: expected VSTATS0 before it, as on rank 0, got another order of the meetings"
    with pytest.raises(PlanError, match=message):
        passes.validate(program(*rows, num_microbatches=2))


def test_either_layer_alone_may_be_split() -> None:
    passes.validate(program("0EMBED0 VEMBED0 0F0 0B0 VEMBED_GRAD0 0EMBED_W0"))
    passes.validate(program("0F0 VBCAST0 0S0 VSTATS0 VGRAD0 0B0 0T0"))
    with pytest.raises(PlanError, match="0T0: expected no gradient in a program without backward"):
        passes.validate(program("0F0 VBCAST0 0S0 VSTATS0 0T0"))
