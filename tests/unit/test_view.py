import base64
import itertools
import json
import re
import struct
import zlib

import pytest
import test_trace

import pipert
from pipert import ConfigError, Costs, passes, schedules
from pipert.sim import VocabCosts
from pipert.trace import Trace
from pipert.view import write_timeline


@pytest.fixture
def predicted():
    return pipert.simulate(test_trace.plan_of(), Costs.per_rank(F=1, I=2, W=3, p2p=0.25))


@pytest.fixture
def measured(predicted):
    plan = predicted.trace.plan
    return Trace.from_records(plan, [test_trace.records(plan, predicted.trace, rank) for rank in (0, 1)])


def page_of(path):
    html = path.read_text(encoding="utf-8")
    return html, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def columns(trace):
    """Unpack a trace as the page does."""
    content, offset, found = zlib.decompress(base64.b64decode(trace["data"])), 0, {}
    for name, size, length in trace["columns"]:
        assert offset % size == 0
        found[name] = list(struct.unpack_from(f"<{length}{' BH I'[size]}", content, offset))
        offset += size * length
    assert offset == len(content)
    return found


def times(trace):
    """The start and the end of every op, in the page's unit."""
    found = columns(trace)
    starts = [start * trace["tick"] for start in found["start"]]
    return starts, [start + took * trace["tick"] for start, took in zip(starts, found["took"], strict=True)]


def texts(page, trace):
    """The text of every op, pairs included."""
    found, kinds = columns(trace), [kind["text"] for kind in page["kinds"]]
    pairs = zip(*(found[name] for name in ("pairFirst", "pairSecond", "pairStage", "pairMicrobatch")), strict=True)
    for kind, stage, stored in zip(found["kind"], found["stage"], found["microbatch"], strict=True):
        microbatch = stored - 1 if stored else ""
        if kinds[kind] == "OVERLAP_F_B":
            first, second, other_stage, other_microbatch = next(pairs)
            yield f"({stage}{kinds[first]}{microbatch};{other_stage}{kinds[second]}{other_microbatch})OVERLAP_F_B"
        else:
            place = "" if page["kinds"][kind]["scope"] == "meeting" else stage
            yield f"{place}{kinds[kind]}{microbatch}"


def dependencies(trace):
    found, place = columns(trace), 0
    for op, count in enumerate(found["numDeps"]):
        yield [op - back for back in found["deps"][place : place + count]]
        place += count


def test_page_holds_both_traces_on_one_axis(tmp_path, predicted, measured):
    path = tmp_path / "timeline.html"
    write_timeline(path, [("planned", predicted.trace), ("measured", measured)])
    _, page = page_of(path)
    planned, real = page["traces"]
    assert (planned["label"], real["label"], page["unit"]) == ("planned", "measured", "ms")
    for trace in (planned, real):
        start, end = times(trace)
        assert start == pytest.approx(list(predicted.trace.start), abs=1e-6)
        assert end == pytest.approx(list(predicted.trace.end), abs=1e-6)
    assert real["figures"]["makespan"] == pytest.approx(planned["figures"]["makespan"]) == predicted.makespan
    assert "waited" not in columns(planned)
    waited = [ticks * real["tick"] for ticks in columns(real)["waited"]]
    expected = [(start - ready) * 1e-6 for start, ready in zip(measured.start, measured.ready, strict=True)]
    assert waited == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", [*schedules.names(), "post-validated", "split vocabulary"])
def test_page_holds_every_op_of_every_schedule(tmp_path, name):
    known = name in schedules.names()
    program = schedules.build(name if known else "zb-h1", num_ranks=4, num_microbatches=8)
    if name == "post-validated":
        program = passes.post_validation(program)
    elif not known:
        program = passes.vocab_parallel(program, 2)
    plan = pipert.compile(program)
    vocab = VocabCosts(S=4, T=3, vbcast=0.5, act_s=0.5)
    costs = Costs.per_rank(F=18.522, I=18.086, W=9.337, p2p=0.601, act=3, act_w=1, vocab=vocab)
    report = pipert.simulate(plan, costs)
    write_timeline(tmp_path / "timeline.html", [(name, report.trace)], costs=costs)
    _, page = page_of(tmp_path / "timeline.html")
    (trace,) = page["traces"]
    assert tuple(texts(page, trace)) == plan.op_text
    assert list(dependencies(trace)) == [
        list(plan.deps[start:end]) for start, end in itertools.pairwise(plan.dep_offsets)
    ]
    assert columns(trace)["lane"] == list(plan.op_lane)
    assert trace["lanes"] == [[lane.rank, lane.kind.value, lane.peer] for lane in plan.lanes]
    start, end = times(trace)
    assert start == pytest.approx(list(report.trace.start), abs=1e-6)
    assert end == pytest.approx(list(report.trace.end), abs=1e-6)
    assert trace["figures"]["peak_activation"] == list(report.peak_activation)
    assert trace["heldShard"] == 0.5
    assert [size for size, _, _ in trace["held"]] == [stage.act for stage in costs.for_plan(plan)]
    assert [len(path) for path in trace["tones"]] == [plan.num_stages] * len(plan.paths)
    assert trace["pathOf"] == list(plan.path_of)


def test_a_large_page_stays_small(tmp_path):
    plan = pipert.compile(schedules.build("zb-v", num_ranks=32, num_microbatches=64))
    trace = pipert.simulate(plan, Costs.per_rank(F=18.522, I=18.086, W=9.337, p2p=0.601)).trace
    write_timeline(tmp_path / "timeline.html", [("planned", trace)])
    html, page = page_of(tmp_path / "timeline.html")
    assert len(page["traces"][0]["data"]) < 12 * plan.num_ops
    assert len(html) < 12 * plan.num_ops + 60_000


def test_page_is_self_contained(tmp_path, predicted):
    path = tmp_path / "timeline.html"
    write_timeline(path, [("planned", predicted.trace)])
    html, page = page_of(path)
    assert page["unit"] == ""
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", html)
    assert "{{" not in html


def test_names_cannot_break_out_of_the_page(tmp_path, predicted):
    path = tmp_path / "timeline.html"
    label = "</script><script>alert(1)</script>{{title}}"
    write_timeline(path, [(label, predicted.trace)])
    html, page = page_of(path)
    assert page["traces"][0]["label"] == label
    assert html.count("</script>") == 2


def test_what_cannot_be_shown(tmp_path, predicted):
    with pytest.raises(ConfigError, match="at least one trace"):
        write_timeline(tmp_path / "timeline.html", [])
    with pytest.raises(ConfigError, match="cannot write"):
        write_timeline(tmp_path / "none" / "timeline.html", [("planned", predicted.trace)])
