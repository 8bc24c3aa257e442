"""Op text: what is written reads back as itself, and nothing else reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipert import PlanError
from pipert.ir import Op
from pipert.ops import LaneKind, OpKind, Scope

NUMBERS = st.integers(0, 999_999_999)
PLAIN_KINDS = [kind for kind in OpKind if kind.has_microbatch and kind.has_place and kind is not OpKind.OVERLAP_F_B]
PLAIN = st.builds(Op, st.sampled_from(PLAIN_KINDS), NUMBERS, NUMBERS)
WHOLE_STAGE = st.builds(Op, st.sampled_from([kind for kind in OpKind if not kind.has_microbatch]), NUMBERS)
MEETING = st.builds(Op, st.sampled_from([kind for kind in OpKind if not kind.has_place]), st.just(-1), NUMBERS)
COMPUTE = PLAIN.filter(lambda op: op.kind.lane is LaneKind.COMPUTE and op.kind.scope is Scope.MICROBATCH)
OPS = PLAIN | WHOLE_STAGE | MEETING | st.builds(Op.pair, COMPUTE, COMPUTE)


@given(OPS)
def test_text_round_trips(op: Op) -> None:
    assert Op.parse(str(op)) == op


@st.composite
def nearly_ops(draw: st.DrawFn) -> str:
    """The text of an op with something put into it."""
    text = str(draw(OPS))
    where = draw(st.integers(0, len(text)))
    return text[:where] + draw(st.text("0123FBIWRSEND_OVLAPUHCG();- \n٢", min_size=1, max_size=3)) + text[where:]


@given(nearly_ops() | st.text())
def test_any_other_text_is_refused_or_is_another_op_s(text: str) -> None:
    try:
        op = Op.parse(text)
    except PlanError:
        return
    assert str(op) == text


def test_texts_are_pytorch_s() -> None:
    assert str(Op(OpKind.FORWARD, 2, 0)) == "2F0"
    assert str(Op(OpKind.SEND_B, 3, 1)) == "3SEND_B1"
    assert [str(Op(kind, 2)) for kind in OpKind if kind.scope is Scope.STAGE] == [
        "2UNSHARD",
        "2RESHARD",
        "2REDUCE_GRAD",
    ]
    assert str(Op.pair(Op.parse("2F3"), Op.parse("5B1"))) == "(2F3;5B1)OVERLAP_F_B"


def test_a_pair_unpacks_into_its_parts_and_an_op_into_itself() -> None:
    pair = Op.parse("(2F3;5B1)OVERLAP_F_B")
    assert list(map(str, pair.unpacked)) == ["2F3", "5B1"]
    assert (pair.stage, pair.microbatch) == (2, 3)
    assert Op.parse("2F3").unpacked == (Op.parse("2F3"),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2F0junk",
        "2F0 ",
        " 2F0",
        "2F0\n",
        "02F0",
        "2F00",
        "-1F0",
        "2f0",
        "٢F0",
        "2X0",
        "F0",
        "2F",
        "1UNSHARD0",
        "01UNSHARD",
        "UNSHARD",
        "1UNSHARDS",
        "2OVERLAP_F_B0",
        "9999999999F0",
        "(2F0)OVERLAP_F_B",
        "(2F0;5B1;5B2)OVERLAP_F_B",
        "(2F0;5SEND_B1)OVERLAP_F_B",
        "(2F0;5B1)F",
        "((2F0;5B1)OVERLAP_F_B;5B1)OVERLAP_F_B",
    ],
)
def test_what_is_no_op_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Op.parse(text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((OpKind.FORWARD, -1, 0), "start at 0"),
        ((OpKind.FORWARD, 0, 0, (Op.parse("0F0"),)), "only OVERLAP_F_B has parts"),
        ((OpKind.OVERLAP_F_B, 0, 0), "two compute ops as its parts, not none"),
        ((OpKind.OVERLAP_F_B, 0, 0, (Op.parse("0F0"), Op.parse("1RECV_F0"))), "not 0F0, 1RECV_F0"),
        ((OpKind.OVERLAP_F_B, 0, 1, (Op.parse("0F0"), Op.parse("0B1"))), "those of its first part"),
    ],
)
def test_an_op_that_cannot_be_is_refused(args: tuple[object, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Op(*args)  # type: ignore[arg-type]
