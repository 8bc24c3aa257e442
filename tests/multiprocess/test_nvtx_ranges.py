"""What an NVTX tool is told about a step: every op once, in order, with its payload; and nothing when it is off."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import uuid

import nvtx_steps
import nvtx_tool
import pytest

from pipert.ops import LaneKind

SCRIPT = nvtx_tool.ROOT / "tests" / "nvtx_steps.py"


@pytest.fixture(scope="session")
def tool(tmp_path_factory):
    return nvtx_tool.build_tool(tmp_path_factory.mktemp("nvtx"))


def start(tool, log, *arguments, **environment):
    variables = {
        "NVTX_INJECTION64_PATH": os.fspath(tool),
        "PIPERT_TEST_NVTX_LOG": os.fspath(log),
        "PYTHONPATH": os.pathsep.join([os.fspath(nvtx_tool.ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    base = {name: value for name, value in os.environ.items() if name != "PIPERT_NVTX"}
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, env={**base, **variables, **environment}, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def events_of(tool, log, *arguments, **environment):
    finish(start(tool, log, *arguments, **environment))
    return nvtx_tool.read(log)


@pytest.mark.parametrize("name", ["1f1b", "zb-v", "dualpipe", "post-validation", "sharded"])
def test_every_op_is_shown_once_a_step_in_the_plans_order(tool, tmp_path, name):
    events = events_of(tool, tmp_path / "log", "local", name)
    plan = nvtx_steps.plan_of(name)
    nvtx_tool.check(events, plan, {0, 1}, nvtx_steps.NUM_STEPS, nvtx_steps.nbytes)
    assert len({event.thread for event in events}) > 1  # the large messages have the threads of their lanes


def test_each_process_shows_its_own_ops(tool, tmp_path):
    session = uuid.uuid4().hex
    logs = [tmp_path / "rank0", tmp_path / "rank1"]
    processes = [start(tool, log, "shm", "zb-v", rank, session) for rank, log in enumerate(logs)]
    for process in processes:
        finish(process)
    plan = nvtx_steps.plan_of("zb-v")
    for rank, log in enumerate(logs):
        nvtx_tool.check(nvtx_tool.read(log), plan, {rank}, nvtx_steps.NUM_STEPS, nvtx_steps.nbytes)


@pytest.mark.parametrize("failing", ["1F1", "0B3", "0F0"])
def test_ranges_are_balanced_when_a_handler_raises(tool, tmp_path, failing):
    events = events_of(tool, tmp_path / "log", "failing", "1f1b", failing)
    plan = nvtx_steps.plan_of("1f1b")
    compute = [
        plan.op_text[row] for row in range(plan.num_ops) if plan.lanes[plan.op_lane[row]].kind is LaneKind.COMPUTE
    ]
    shown = [event.name for event in events if event.name in compute]
    assert shown == compute[: compute.index(failing) + 1]
    assert len({event.name for event in events}) == len(events)


def test_an_engines_step_is_shown(tool, tmp_path):
    events = events_of(tool, tmp_path / "log", "engine", "zb-v")
    plan = nvtx_steps.plan_of("zb-v")
    ops = [event for event in events if not event.name.startswith("step ")]
    steps = [event for event in events if event.name.startswith("step ")]
    if importlib.util.find_spec("nvtx") is None:
        assert steps == []
    else:  # the steps are ranges around their ops
        assert [event.name for event in steps] == [f"step {step}" for step in range(nvtx_steps.NUM_STEPS)]
        ops = [dataclasses.replace(event, depth=0) for event in ops if steps[0].start < event.start < steps[-1].end]
    rows_a_microbatch, columns, float_bytes = 2, 6, 4
    size = rows_a_microbatch * columns * float_bytes
    nvtx_tool.check(ops, plan, {0, 1}, nvtx_steps.NUM_STEPS, lambda text, step: size)


def test_a_tool_that_knows_no_payload_schema_is_told_the_bytes(tool, tmp_path):
    events = events_of(tool, tmp_path / "log", "local", "1f1b", PIPERT_TEST_NVTX_PLAIN="1")
    sizes = {event.name: event.payload for event in events}
    assert sizes["0F1"] == 0
    assert sizes["0SEND_F1"] == sizes["1RECV_F1"] == nvtx_steps.nbytes("0SEND_F1", 0)


def test_nothing_is_shown_when_it_is_off(tool, tmp_path):
    finish(start(tool, tmp_path / "log", "local", "1f1b", PIPERT_NVTX="0"))
    assert not (tmp_path / "log").exists()  # the tool was not even loaded
    finish(start(tool, tmp_path / "log", "local", "1f1b", PIPERT_NVTX=""))
    assert (tmp_path / "log").exists()
