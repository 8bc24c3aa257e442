"""The bubble table, of steps whose times are known."""

import time
from array import array

import nsys_export
import pytest

import pipert
from pipert import ConfigError, Costs
from pipert.ops import LaneKind
from pipert.profile.bubbles import RankTimes, bubbles
from pipert.profile.device_times import with_device_times
from pipert.profile.recorded import Recorded
from pipert.trace import Trace

PLAN = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
COSTS = Costs.per_rank(F=1, I=1, W=1, p2p=0.5)
ORIGIN_NS = 5_000_000


def step_of(costs, step, plan=PLAN):
    """A step as an engine would have measured it, in which ops took what they cost, in ms."""
    trace = pipert.simulate(plan, costs).trace
    start, end = (array("d", [1e6 * time for time in column]) for column in (trace.start, trace.end))
    return Trace(plan, start, end, array("d", start), "ns", step, ORIGIN_NS)


# Rank 0: F0 0-1, F1 1-2, B0 5-7, B1 8-10. Rank 1: F0 1.5-2.5, B0 2.5-4.5, F1 4.5-5.5, B1 5.5-7.5. Gradients arrive at
# 5 and 8, half a ms after they were made: that is what rank 0 waits for transfers; rank 1 so waits for its first input.
TABLE = """\
1f1b: 2 ranks, 2 stages, 2 microbatches · step 10.00 ms, predicted 10.00 ms
rank compute predicted exposed p2p predicted exposed copies crypto idle predicted
0 6.00 ms 60.0% 6.00 ms 60.0% 1.00 ms 10.0% 1.00 ms 10.0% – – 3.00 ms 30.0% 3.00 ms 30.0%
1 6.00 ms 60.0% 6.00 ms 60.0% 0.50 ms 5.0% 0.50 ms 5.0% – – 3.50 ms 35.0% 3.50 ms 35.0%"""


def test_the_table_of_a_known_step():
    found = bubbles(Recorded(PLAN, (step_of(COSTS, 2),), one_process=False))
    assert [" ".join(line.split()) for line in str(found).splitlines()] == TABLE.splitlines()


def test_parts_are_the_medians_over_steps():
    costs = [Costs.per_rank(F=f, I=1, W=1, p2p=p2p) for f, p2p in ((1, 0.5), (4, 0.5), (1.5, 0.25))]
    steps = tuple(step_of(each, step) for step, each in enumerate(costs))
    found = bubbles(Recorded(PLAN, steps, one_process=False))
    alone = [bubbles(Recorded(PLAN, (step,), one_process=False)) for step in steps]
    assert found.typical is steps[2]  # of 10, 19 and 10.25 ms
    assert found.measured.time == alone[2].measured.time
    assert found.measured.ranks[0].compute == 7
    exposed = sorted(each.measured.ranks[0].exposed_p2p for each in alone)
    assert found.measured.ranks[0].exposed_p2p == exposed[1]
    assert found.predicted == alone[2].predicted


def test_one_process_is_predicted_as_one():
    plan = PLAN
    now, start, end = 0.0, array("d"), array("d")
    for op in plan.ops:
        start.append(now)
        now += 1e6 if op.kind.lane is LaneKind.COMPUTE else 0
        end.append(now)
    trace = Trace(plan, start, end, array("d", start), "ns", 0)
    found = bubbles(Recorded(plan, (trace,), one_process=True))
    assert found.predicted.time == pytest.approx(8)
    assert found.predicted.ranks[0] == RankTimes(4, 0, None, None, 4)


def test_what_cannot_be_predicted_is_measured_all_the_same():
    plan = pipert.compile(pipert.schedules.build("dualpipe", num_ranks=2, num_microbatches=4))
    trace = step_of(COSTS, 0, plan)
    for op, item in enumerate(plan.ops):
        if item.parts:
            trace.end[op] = trace.start[op]
    found = bubbles(Recorded(plan, (trace,), one_process=False))
    assert found.predicted is None
    assert "overlap" in found.unpredicted
    head, titles, *rows = str(found).splitlines()
    assert "not predicted: overlap" in head
    assert "predicted" not in titles
    assert len(rows) == 2
    assert found.to_dict()["ranks"][1]["predicted"] is None


def export_of(trace, form, path, *, factor, leave_out=()):
    """The report of a run in which each compute op had one kernel, and each transfer a range of its own."""
    to_session = time.time_ns() - time.monotonic_ns() - nsys_export.EPOCH + trace.origin_ns
    export = nsys_export.Export(form)
    threads = [nsys_export.thread(100 + rank, 1) for rank in range(trace.plan.num_ranks)]
    for each in threads:
        export.range(f"pipert step {trace.step}", to_session - 1000, to_session + int(1e9), each, domain=0)
    for op, text in enumerate(trace.plan.op_text):
        if text in leave_out:
            continue
        each = threads[trace.plan.rank_of(op)]
        start, end = (to_session + round(column[op]) for column in (trace.start, trace.end))
        if trace.plan.ops[op].kind.lane is LaneKind.COMPUTE:
            export.range(text, start - 900, start - 500, each)
            export.launch(each, start - 800, start, start + round((end - start) * factor))
        else:
            export.range(text, start, end, nsys_export.thread(100 + trace.plan.rank_of(op), 10 + op))
    return export.write(path)


@pytest.mark.parametrize("form", ["between", "new"])
def test_device_times_take_the_place_of_the_engines(form, tmp_path):
    trace = step_of(COSTS, 3)
    path = export_of(trace, nsys_export.FORMS[form], tmp_path / "nsys.sqlite", factor=0.5)
    recorded, sources = with_device_times(Recorded(PLAN, (trace, step_of(COSTS, 4)), one_process=False), [path])
    assert str(sources) == "8 ops timed on the device, 8 on the host, 0 transfers by the engine"
    assert [step.step for step in recorded.steps] == [3]  # there is no report of the other
    [timed] = recorded.steps
    for op, item in enumerate(PLAN.ops):
        factor = 0.5 if item.kind.lane is LaneKind.COMPUTE else 1
        assert timed.end[op] - timed.start[op] == pytest.approx(factor * (trace.end[op] - trace.start[op]), abs=2)
        assert timed.start[op] == pytest.approx(trace.start[op], abs=5e6)  # the machine's two clocks, read twice
        assert timed.ready[op] <= timed.start[op]
    found = bubbles(recorded)
    assert found.measured.ranks[0].compute == pytest.approx(3)
    assert found.predicted.ranks[1].compute == pytest.approx(3)


def test_transfers_that_are_in_no_report_are_the_engines(tmp_path):
    trace = step_of(COSTS, 3)
    transfers = {text for text in PLAN.op_text if "SEND" in text or "RECV" in text}
    path = export_of(trace, nsys_export.NEW, tmp_path / "nsys.sqlite", factor=1, leave_out=transfers)
    recorded, sources = with_device_times(Recorded(PLAN, (trace,), one_process=False), [path])
    assert (sources.device, sources.host, sources.engine) == (8, 0, 8)
    op = next(op for op, text in enumerate(PLAN.op_text) if text in transfers)
    assert recorded.steps[0].end[op] == trace.end[op]


def test_a_step_needs_all_its_compute_ops(tmp_path):
    trace = step_of(COSTS, 3)
    path = export_of(trace, nsys_export.NEW, tmp_path / "nsys.sqlite", factor=1, leave_out={"1F1"})
    with pytest.raises(ConfigError, match="no range of 1F1 in step 3, and no other step"):
        with_device_times(Recorded(PLAN, (trace,), one_process=False), [path])
