import json
import math
import struct

import pytest

import pipert
from pipert import ConfigError, Costs, PlanError, schedules
from pipert.trace import RankClock, Trace, measure, read_chrome, write_chrome

BOOT = 7_000_000_000_123  # what the clock shows when the step begins


def plan_of(name="zb-v", num_ranks=2, num_microbatches=4):
    return pipert.compile(schedules.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches))


def records(plan, trace, rank, *, offset=0):
    """What the executor of a rank would have recorded, had the ops run at the simulated times (in ms)."""
    rows, lane_end = [], {}
    for op in range(plan.num_ops):
        lane = plan.op_lane[op]
        if plan.rank_of(op) != rank:
            continue
        times = [int(1e6 * time) + BOOT + offset for time in (lane_end.get(lane, 0), trace.start[op], trace.end[op])]
        rows.append(struct.pack("<IIqqq", op, lane, *times))
        lane_end[lane] = trace.end[op]
    return b"".join(rows)


@pytest.fixture
def predicted():
    return pipert.simulate(plan_of(), Costs.per_rank(F=1, I=2, W=3, p2p=0.25))


@pytest.fixture
def measured(predicted):
    plan = predicted.trace.plan
    chunks = [records(plan, predicted.trace, 0), records(plan, predicted.trace, 1, offset=500)]
    return Trace.from_records(plan, chunks, step=3, clocks=(RankClock(0, 0), RankClock(500, 40)))


def test_measured_and_simulated_figures_are_the_same(predicted, measured):
    ours, theirs = measure(measured).to_dict(), predicted.to_dict()
    assert (ours.pop("unit"), theirs.pop("unit")) == ("ns", "cost")
    assert ours.pop("lower_bound") is None  # of what was measured, the costs are not known
    theirs.pop("lower_bound")
    for name, value in theirs.items():
        if name in ("makespan", "longest_rank_span", "rank_spans", "compute_times", "exposed_comm"):
            value = [1e6 * item for item in value] if isinstance(value, list) else 1e6 * value
        assert ours[name] == (value if isinstance(value, str) else pytest.approx(value)), name


def test_times_count_from_the_first_record(measured):
    assert min(measured.ready) == 0
    assert measured.origin_ns == BOOT
    assert measured.step == 3


def test_records_of_one_rank_can_be_sent_on(predicted, measured):
    plan = predicted.trace.plan
    parts = [Trace.from_records(plan, [records(plan, predicted.trace, rank)]) for rank in (1, 0)]
    assert [plan.rank_of(op) for op in parts[0].recorded()] == [1] * len(list(parts[0].recorded()))
    whole = Trace.from_records(plan, [part.to_records() for part in parts])
    assert (whole.start, whole.end, whole.ready) == (measured.start, measured.end, measured.ready)
    again = Trace.from_records(plan, [measured.to_records()], step=3, clocks=measured.clocks)
    assert again == measured


def test_noticing_what_has_arrived_is_exposed_too():
    plan = pipert.compile(schedules.build("gpipe", num_ranks=2, num_microbatches=1))
    times = {"0F0": (0, 10), "0SEND_F0": (12, 15), "1RECV_F0": (12, 15), "1F0": (19, 29), "1B0": (29, 39)}
    times |= {"1SEND_B0": (40, 42), "0RECV_B0": (40, 42), "0B0": (45, 50)}
    rows = [struct.pack("<IIqqq", op, 0, 0, *times[text]) for op, text in enumerate(plan.op_text)]
    assert measure(Trace.from_records(plan, rows)).exposed_comm == (6.0, 9.0)


def test_figures_need_all_ranks(predicted):
    plan = predicted.trace.plan
    part = Trace.from_records(plan, [records(plan, predicted.trace, 0)])
    with pytest.raises(ConfigError, match="lacks 1RECV_F0 of rank 1: join the records of all ranks"):
        measure(part)


def test_bad_records_are_refused(predicted):
    plan = predicted.trace.plan
    chunk = records(plan, predicted.trace, 0)
    with pytest.raises(ConfigError, match="cut short"):
        Trace.from_records(plan, [chunk[:-1]])
    with pytest.raises(ConfigError, match="op 0F0 is recorded twice"):
        Trace.from_records(plan, [chunk, chunk])
    with pytest.raises(ConfigError, match="names op 999999"):
        Trace.from_records(plan, [struct.pack("<IIqqq", 999999, 0, 1, 2, 3)])
    with pytest.raises(ConfigError, match="only a measured trace"):
        predicted.trace.to_records()


def test_chrome_file_gives_the_traces_back(tmp_path, predicted, measured):
    path = tmp_path / "trace.json"
    write_chrome(path, [("measured", measured), ("predicted", predicted.trace)])
    (first, ours), (second, theirs) = read_chrome(path)
    assert (first, second) == ("measured", "predicted")
    assert ours == measured
    assert theirs.plan == predicted.trace.plan
    assert theirs.ready is None
    for name in ("start", "end"):
        assert list(getattr(theirs, name)) == pytest.approx(list(getattr(predicted.trace, name)), abs=1e-8)


def test_chrome_events(tmp_path, predicted, measured):
    path = tmp_path / "trace.json"
    write_chrome(path, [("measured", measured), ("predicted", predicted.trace)])
    events = json.loads(path.read_text())["traceEvents"]
    plan = measured.plan
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == 2 * plan.num_ops
    for event, op in zip(slices, range(plan.num_ops), strict=False):
        assert event["name"] == plan.op_text[op]
        assert event["pid"] == plan.rank_of(op)
        assert event["ts"] == pytest.approx(measured.start[op] / 1e3)
        assert event["dur"] == pytest.approx((measured.end[op] - measured.start[op]) / 1e3)
        assert event["args"]["stage"] == plan.ops[op].stage
        assert event["args"]["microbatch"] == plan.ops[op].microbatch
        assert event["args"]["waited_us"] == pytest.approx((measured.start[op] - measured.ready[op]) / 1e3)
    names = {event["pid"]: event["args"] for event in events if event["name"] == "process_name"}
    assert [names[pid]["name"] for pid in range(4)] == [
        f"{label}: rank {rank}" for label in ("measured", "predicted") for rank in (0, 1)
    ]
    assert (names[1]["clock_offset_ns"], names[1]["clock_uncertainty_ns"]) == (500, 40)
    threads = {
        (event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    assert {threads[event["pid"], event["tid"]] for event in slices} == {
        "compute", "send to 0", "send to 1", "receive from 0", "receive from 1",
    }  # fmt: skip
    assert all(threads[event["pid"], event["tid"]] == event["args"]["lane"] for event in slices)
    arrows = [event for event in events if event["ph"] in "sf"]
    starts, ends = ({event["id"]: event for event in arrows if event["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys()
    assert len(starts) == 2 * sum("SEND" in text for text in plan.op_text)
    assert all(starts[key]["ts"] <= ends[key]["ts"] for key in starts)


def test_slices_of_a_thread_do_not_overlap(tmp_path):
    path = tmp_path / "trace.json"
    write_chrome(path, [("slow links", pipert.simulate(plan_of("1f1b", 3, 6), Costs.per_rank(p2p=5.0)).trace)])
    busy_until = {}
    for event in json.loads(path.read_text())["traceEvents"]:
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            assert event["ts"] >= busy_until.get(thread, 0)
            busy_until[thread] = event["ts"] + event["dur"]


def test_a_rank_by_itself_can_be_written(tmp_path, predicted):
    plan = predicted.trace.plan
    part = Trace.from_records(plan, [records(plan, predicted.trace, 1)])
    write_chrome(tmp_path / "trace.json", [("rank 1", part)])
    [(_, again)] = read_chrome(tmp_path / "trace.json")
    assert list(again.recorded()) == list(part.recorded())
    assert sum(map(math.isnan, again.start)) == sum(map(math.isnan, part.start)) > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda file: file.pop("otherData"), ConfigError, "not written by pipert"),
        (lambda file: file["otherData"]["pipert"].update(version=9), ConfigError, "has version 9"),
        (lambda file: file["otherData"]["pipert"].pop("plans"), ConfigError, "damaged: KeyError: 'plans'"),
        (lambda file: file["traceEvents"][-3]["args"].update(op=-1), ConfigError, "damaged: IndexError"),
        (lambda file: file["traceEvents"][-3].update(ts="soon"), ConfigError, "damaged: TypeError"),
        (lambda file: file["otherData"]["pipert"]["plans"][0]["ops"]["deps"].pop(), PlanError, "dep"),
    ],
)
def test_damaged_files_are_refused(tmp_path, predicted, change, error, message):
    path = tmp_path / "trace.json"
    write_chrome(path, [("predicted", predicted.trace)])
    file = json.loads(path.read_text())
    file["traceEvents"] = [event for event in file["traceEvents"] if event["ph"] == "X"]
    change(file)
    path.write_text(json.dumps(file))
    with pytest.raises(error, match=message):
        read_chrome(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read trace file .*none.json.*: No such file"):
        read_chrome(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"traceEvents": [')
    with pytest.raises(ConfigError, match=r"half.json' is not JSON: .*line 1 column 18"):
        read_chrome(tmp_path / "half.json")
    with pytest.raises(ConfigError, match="cannot write trace file"):
        write_chrome(tmp_path / "none" / "trace.json", [])
