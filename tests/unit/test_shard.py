"""The pass that gathers and reduces parameters by the plan."""

from __future__ import annotations

from collections import Counter

import pytest

import pipert
from pipert import ConfigError, schedules
from pipert.ir import Op, Program
from pipert.ops import LaneKind
from pipert.passes import shard


def program_of(*rows: str, stage_ranks: tuple[int, ...], num_microbatches: int) -> Program:
    return Program.single_path("mine", stage_ranks, num_microbatches, [tuple(map(Op.parse, r.split())) for r in rows])


def texts(program: Program, rank: int = 0) -> str:
    return " ".join(map(str, program.ranks[rank]))


def test_one_stage_at_a_time() -> None:
    program = program_of("0F0 1F0 1B0 0I0 0W0", stage_ranks=(0, 0), num_microbatches=1)
    assert texts(shard(program, num_whole=1)) == (
        "0UNSHARD 0F0 0RESHARD 1UNSHARD 1F0 1B0 1REDUCE_GRAD 1RESHARD 0UNSHARD 0I0 0W0 0REDUCE_GRAD 0RESHARD"
    )
    assert texts(shard(program, num_whole=2)) == (
        "0UNSHARD 1UNSHARD 0F0 1F0 1B0 1REDUCE_GRAD 1RESHARD 0I0 0W0 0REDUCE_GRAD 0RESHARD"
    )


def test_a_pair_has_both_its_stages() -> None:
    rows = "0F0 1F0 (0F1;1B0)OVERLAP_F_B 1F1 1B1 0B0 0B1"
    program = shard(program_of(rows, stage_ranks=(0, 0), num_microbatches=2), num_whole=1)
    assert "1RESHARD" not in texts(program).split("0UNSHARD (0F1;1B0)")[0]
    pipert.compile(program)


@pytest.mark.parametrize("name", ["interleaved", "breadth-first", "zeropp", "zb-v", "dualpipe-v", "chimera"])
@pytest.mark.parametrize("num_whole", [1, 2, 3])
def test_at_most_so_many_stages_are_whole_and_the_verifier_agrees(name: str, num_whole: int) -> None:
    program = schedules.build(name, num_ranks=4, num_microbatches=8)
    sharded = shard(program, num_whole=num_whole)
    pipert.compile(sharded)
    for before, after in zip(program.ranks, sharded.ranks, strict=True):
        whole: set[int] = set()
        assert tuple(op for op in after if op.kind.lane is LaneKind.COMPUTE) == before
        for op in after:
            if op.kind.text == "UNSHARD":
                whole.add(op.stage)
            elif op.kind.text == "RESHARD":
                whole.remove(op.stage)
            elif op.kind.lane is LaneKind.COMPUTE:
                assert {part.stage for part in op.unpacked} <= whole
                assert len(whole) <= max(num_whole, len(op.unpacked))
        assert not whole
        reduced = Counter(op.stage for op in after if op.kind.text == "REDUCE_GRAD")
        assert reduced == Counter({op.stage for op in before})


def test_zeropp_gathers_once_per_chunk_block_and_way() -> None:
    def num_gathers(name: str) -> int:
        program = schedules.build(name, num_ranks=4, num_microbatches=28, num_chunks=4)
        return max(sum(op.kind.text == "UNSHARD" for op in ops) for ops in shard(program, num_whole=2).ranks)

    assert num_gathers("breadth-first") == 2 * 4 - 2
    assert num_gathers("zeropp") <= 4 * 2 * 4
    assert num_gathers("interleaved") > 1.5 * num_gathers("zeropp")


def test_pytorch_puts_the_same_ops_in_the_same_places() -> None:
    torch_schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    for name in ("interleaved", "breadth-first", "zeropp", "v-half", "1f1b"):
        program = schedules.build(name, num_ranks=4, num_microbatches=9)
        for before, after in zip(program.ranks, shard(program).ranks, strict=True):
            actions = [torch_schedules._Action.from_str(str(op)) for op in before]
            theirs = torch_schedules._add_unshard_reshard(torch_schedules._add_reduce_grad(actions, 9))
            gathers = [str(op) for op in after if op.kind.text != "REDUCE_GRAD"]
            assert gathers == [str(action) for action in theirs if "REDUCE_GRAD" not in str(action)]
            assert Counter(map(str, after)) == Counter(map(str, theirs))


def test_no_stage_at_all() -> None:
    with pytest.raises(ConfigError, match="at least 1 whole stage at a time, not 0"):
        shard(schedules.build("1f1b", num_ranks=2, num_microbatches=2), num_whole=0)
