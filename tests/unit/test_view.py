import base64
import json
import re
from array import array

import pytest
import test_trace

import pipert
from pipert import ConfigError, Costs
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


def column(text, typecode):
    return list(array(typecode, base64.b64decode(text)))


def test_page_holds_both_traces_on_one_axis(tmp_path, predicted, measured):
    path = tmp_path / "timeline.html"
    write_timeline(path, [("planned", predicted.trace), ("measured", measured)])
    _, page = page_of(path)
    planned, real = page["traces"]
    assert (planned["label"], real["label"], page["unit"]) == ("planned", "measured", "ms")
    assert column(planned["start"], "d") == pytest.approx(list(predicted.trace.start))
    assert column(real["end"], "d") == pytest.approx(column(planned["end"], "d"))
    assert real["figures"]["makespan"] == pytest.approx(planned["figures"]["makespan"]) == predicted.makespan
    plan = predicted.trace.plan
    texts = [
        f"{stage}{page['kinds'][kind]}{mb}"
        for stage, kind, mb in zip(
            column(planned["stage"], "i"), column(planned["kind"], "B"), column(planned["microbatch"], "i"), strict=True
        )
    ]
    assert texts == list(plan.op_text)
    assert planned["ready"] is None
    assert real["ready"] is not None


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


def test_pairs_keep_their_text(tmp_path):
    from pipert.ir import Op, Program

    ops = tuple(map(Op.parse, ["0F0", "(0F1;0B0)OVERLAP_F_B", "0B1"]))
    report = pipert.simulate(pipert.compile(Program.single_path("pair", (0,), 2, (ops,))), Costs.per_rank())
    write_timeline(tmp_path / "timeline.html", [("planned", report.trace)])
    _, page = page_of(tmp_path / "timeline.html")
    assert page["traces"][0]["pairs"] == {"1": "(0F1;0B0)OVERLAP_F_B"}


def test_what_cannot_be_shown(tmp_path, predicted):
    with pytest.raises(ConfigError, match="at least one trace"):
        write_timeline(tmp_path / "timeline.html", [])
    with pytest.raises(ConfigError, match="cannot write"):
        write_timeline(tmp_path / "none" / "timeline.html", [("planned", predicted.trace)])
