"""The still picture: valid XML in which every op can be found again, at any size."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest

import pipert
from pipert import Costs, Op, OpKind, Program, passes, schedules
from pipert.costs import StageCosts
from pipert.trace import Report, Trace
from pipert.view import timeline_svg
from pipert.view.palette import color_of

BLUE = "#{:02x}{:02x}{:02x}".format(*color_of(OpKind.FORWARD))


def simulated(name: str, p: int, m: int, costs: Costs | None = None) -> Report:
    plan = pipert.compile(schedules.build(name, num_ranks=p, num_microbatches=m))
    return pipert.simulate(plan, costs or Costs.per_rank())


def nodes(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [node for node in root.iter() if node.tag.endswith(f"}}{tag}")]


def texts(root: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in nodes(root, "text")]


def bars(root: ElementTree.Element) -> list[tuple[str, float, float, float]]:
    """Follow the pens: (color, y, left, right) of every bar, in pixels from the start of the time axis."""
    found = []
    for path in nodes(root, "path"):
        if "stroke" not in path.attrib:
            continue
        x = y = 0.0
        for letter, numbers in re.findall(r"([Mmh])([-0-9. ]+)", path.attrib["d"]):
            values = list(map(float, numbers.split()))
            if letter == "M":
                x, y = values
            elif letter == "m":
                assert values[1] == 0
                x += values[0]
            else:
                found.append((path.attrib["stroke"], y, x / 10, (x + values[0]) / 10))
                x += values[0]
    return found


@pytest.mark.parametrize(("name", "p", "m"), [("1f1b", 4, 8), ("zb-v", 3, 7), ("interleaved", 1, 1)])
def test_every_op_is_a_bar_where_it_ran(name: str, p: int, m: int) -> None:
    report = simulated(name, p, m)
    trace = report.trace
    root = ElementTree.fromstring(timeline_svg([(name, trace)]))
    drawn = bars(root)
    rows = sorted({y for _, y, _, _ in drawn})
    assert len(rows) == p
    pixels = (float(root.attrib["width"]) - 62 - 96) / report.makespan
    for rank, y in enumerate(rows):
        ids = trace.plan.compute_ops(rank)
        mine = sorted((left, right) for _, at, left, right in drawn if at == y)
        assert len(mine) == len(ids)
        for op, (left, right) in zip(ids, mine, strict=True):
            assert left == pytest.approx(trace.start[op] * pixels, abs=0.06)
            assert right == pytest.approx(trace.end[op] * pixels, abs=0.9)


def test_colours_tell_kinds_and_chunks() -> None:
    root = ElementTree.fromstring(timeline_svg([("1f1b", simulated("1f1b", 4, 8).trace)]))
    assert Counter(color for color, *_ in bars(root))[BLUE] == 32
    root = ElementTree.fromstring(timeline_svg([("zb-v", simulated("zb-v", 4, 8).trace)]))
    counts = Counter(color for color, *_ in bars(root))
    assert counts[BLUE] == 32
    assert sorted(counts.values()) == [32] * 6
    assert "lighter: later chunks of a rank" in texts(root)


def test_captions_labels_and_legend() -> None:
    report = simulated("zb-h1", 4, 8, Costs.per_rank(F=10, I=10, W=4, act=3e6))
    other = simulated("gpipe", 2, 4)
    root = ElementTree.fromstring(timeline_svg([("ZB-H1 & co <1>", report.trace), ("gpipe", other.trace)]))
    words = texts(root)
    assert "ZB-H1 & co <1>" in words
    assert "4 ranks · 4 stages · 8 microbatches" in words
    assert any(text.startswith(f"makespan {report.makespan:g} · bubble {report.bubble_rate:.1%}") for text in words)
    assert [text for text in words if text in ("forward", "backward", "input gradient", "weight gradient")] == [
        "forward",
        "backward",
        "input gradient",
        "weight gradient",
    ]
    assert Counter(words)["rank 1"] == 2
    assert Counter(words)["7"] >= 12  # microbatch 7 on four ranks
    idle = 1 - report.compute_times[0] / report.makespan
    assert f"{idle:.0%}" in words
    with_bytes = timeline_svg([("zb-h1", report.trace)], costs=Costs.per_rank(act=3e6))
    assert "peak activation 12M on rank 0" in with_bytes


def test_a_pair_is_split_between_its_two_parts() -> None:
    ops = tuple(map(Op.parse, ["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]))
    trace = pipert.simulate(pipert.compile(Program.single_path("pair", (0,), 2, (ops,))), Costs.per_rank()).trace
    root = ElementTree.fromstring(timeline_svg([("pair", trace)]))
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, y, left, right in bars(root):
        rows.setdefault(y, []).append((left, right))
    upper, whole, lower = (rows[y] for y in sorted(rows))
    assert len(whole) == 2
    assert upper == lower
    assert whole[0][1] <= upper[0][0] + 0.1
    assert upper[0][1] <= whole[1][0] + 0.1
    assert "split bars: overlapped pairs" in texts(root)


def test_paths_have_tones_of_their_own() -> None:
    down = ["0F0", "0B0", "1F1", "1B1"]
    up = ["1F0", "1B0", "0F1", "0B1"]
    program = Program(
        "opposite",
        ((0, 1), (1, 0)),
        (0, 1),
        (
            tuple(map(Op.parse, [down[0], down[2], down[3], down[1]])),
            tuple(map(Op.parse, [up[2], up[0], up[1], up[3]])),
        ),
    )
    trace = pipert.simulate(pipert.compile(program), Costs.per_rank()).trace
    root = ElementTree.fromstring(timeline_svg([("opposite", trace)]))
    assert len({color for color, *_ in bars(root)}) == 4  # F and B of either path
    assert "darker: the second path" in texts(root)
    assert "2 ranks · 2 stages · 2 microbatches · 2 paths" in texts(root)


def test_the_optimizer_is_named_where_it_runs() -> None:
    program = passes.post_validation(schedules.build("zb-h1", num_ranks=2, num_microbatches=4))
    costs = Costs.per_stage([StageCosts(opt=5.0)] * 2)
    words = texts(ElementTree.fromstring(timeline_svg([("x", pipert.simulate(pipert.compile(program), costs).trace)])))
    assert Counter(words)["OPT"] == 2
    assert "optimizer" in words


def test_a_measured_step_is_in_milliseconds() -> None:
    report = simulated("1f1b", 2, 4)
    trace = report.trace
    ns = Trace(
        trace.plan,
        type(trace.start)("d", (5e6 + time * 1e6 for time in trace.start)),
        type(trace.end)("d", (5e6 + time * 1e6 for time in trace.end)),
        unit="ns",
    )
    words = texts(ElementTree.fromstring(timeline_svg([("measured", ns), ("planned", trace)])))
    assert Counter(words)["0 ms"] == 2
    assert sum(text.startswith(f"makespan {report.makespan:g} ms") for text in words) == 2


@pytest.mark.parametrize("fewer_bars", [False, True])
def test_many_ranks_stay_small(fewer_bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels vanish; beyond the limit, cells with mean colours take the place of ops and cover the same area."""
    report = simulated("zb-v", 40, 40)
    whole = timeline_svg([("zb-v", report.trace)])
    if fewer_bars:
        from pipert.view import svg

        monkeypatch.setattr(svg, "_MAX_BARS", 4000)
    text = timeline_svg([("zb-v", report.trace)])
    root = ElementTree.fromstring(text)
    drawn = bars(root)
    assert len({y for _, y, _, _ in drawn}) == 40
    assert not [node for node in nodes(root, "text") if node.get("class") in ("on ink", "on white")]
    assert len(text) < (80_000 if fewer_bars else 200_000)
    width = float(root.attrib["width"]) - 62 - 96
    assert max(right for *_, right in drawn) <= width * 1.01
    if fewer_bars:
        assert len(drawn) <= 4000
        assert len(text) < len(whole)
