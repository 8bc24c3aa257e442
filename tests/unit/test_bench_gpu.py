"""The benchmarks of work on a CUDA device, in small, on a driver that runs on the host.

Their times say nothing there, but every call is made, every byte is checked, and every figure comes out.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from fake.libraries import fake_cuda

from pipert import launch
from pipert.bench import copy, mps
from pipert.bench.figure import Unavailable

SCRIPT = pathlib.Path(__file__).parents[1] / "fake" / "bench_on_fake.py"
PARTS = [
    "launch/driver_calls",
    "launch/hops",
    "p2p/local",
    "p2p/ipc",
    "p2p/nccl",
    *(f"copy/{name}" for name in copy.CASES),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "figures.json"
    subprocess.run([sys.executable, SCRIPT, out, *PARTS], check=True, timeout=60)
    return {
        part: {figure["name"]: figure for figure in figures} for part, figures in json.loads(out.read_text()).items()
    }


def measured_by_ranks(module, num_ranks, folder):
    out = folder / "figures.json"
    assert launch.run([sys.executable, str(SCRIPT), str(out), module], num_ranks) == 0
    return {figure["name"]: figure for figure in json.loads(out.read_text())}


@pytest.mark.parametrize("part", PARTS)
def test_every_figure_has_a_value_and_its_spread(measured, part):
    for figure in measured[part].values():
        first, third = figure["quartiles"]
        assert 0 < first <= figure["ours"] <= third, figure


def test_the_calls_that_a_step_makes_are_timed(measured):
    calls = measured["launch/driver_calls"]
    assert {"event record", "stream wait event, pending", "memcpy async, 4 B", "graph launch, empty"} <= set(calls)
    assert all(figure["unit"] == "µs" for figure in calls.values())
    assert set(measured["launch/hops"]) == {"hop by event", "hop by host word", "hop by device word"}


@pytest.mark.parametrize(("transport", "bar"), [("local", 0.9), ("ipc", 0.9), ("nccl", None)])
def test_bandwidth_stands_beside_plain_copies(measured, transport, bar):
    figures = measured[f"p2p/{transport}"]
    assert [name for name in figures if "one way" in name] == [
        f"{transport}, one way, 4 B",
        f"{transport}, one way, 1000 B",
    ]
    bandwidth = figures[f"{transport}, bandwidth, 64 KiB"]
    assert bandwidth["unit"] == "GB/s"
    assert bandwidth["peer"] > 0
    assert bandwidth["bar"] == bar
    assert bandwidth["met"] == (None if bar is None else bandwidth["ratio"] >= bar)


@pytest.mark.parametrize(("part", "bar"), [("d2h", 0.95), ("h2d", 0.95), ("both", 0.9), ("d2d", None)])
def test_the_best_chunk_comes_first_and_has_the_bar(measured, part, bar):
    best, *chunks = measured[f"copy/{part}"].values()
    assert best["bar"] == bar
    assert best["ours"] == max(chunk["ours"] for chunk in chunks)
    assert [chunk["name"].rpartition(", ")[2] for chunk in chunks] == ["4 KiB", "16 KiB"]


def test_two_processes_exchange_messages(tmp_path):
    figures = measured_by_ranks("pair_ipc", 2, tmp_path)
    assert list(figures) == [
        "ipc, two processes, time-sliced, one way, 4 B",
        "ipc, two processes, time-sliced, one way, 1000 B",
        "ipc, two processes, time-sliced, bandwidth, 64 KiB",
    ]
    assert all(figure["ours"] > 0 and figure["bar"] is None for figure in figures.values())


def test_what_is_left_of_a_native_op_without_its_calls(tmp_path):
    figures = measured_by_ranks("native_op", 1, tmp_path)
    for transport in ("local", "ipc"):
        for name in (f"native op, {transport}", f"native op replayed, {transport}"):
            own, calls = figures[f"{name}, beyond its CUDA calls"], figures[f"{name}, in its CUDA calls"]
            assert own["bar"] == 2.0
            assert own["ours"] > 0
            assert calls["ours"] > 0
            # a compute op without a message: its end is recorded, and not much else
            assert 1 < float(own["setting"].split("; ")[1].split()[0]) < 10


def test_a_compute_op_stands_beside_the_peer(tmp_path):
    alone, beside = measured_by_ranks("compute_op", 1, tmp_path).values()
    assert (alone["bar"], alone["peer"]) == (8.0, None)
    assert (beside["bar"], beside["relative"]) == (1 / 8, True)
    assert beside["peer"] is not None


MISUSE = """
from pipert import _core
from pipert.errors import ConfigError

def refused(message, call, *arguments):
    try:
        call(*arguments)
    except ConfigError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)

_core.time_cuda_calls()
_core.time_cuda_calls()
_core.take_cuda_call_times()
stream, other, timer = _core.CudaStream(), _core.CudaStream(), _core.CudaTimer()
refused("before the first of them", _core.time_cuda_calls)
refused("no call 'walk'", _core.cuda_call_ns, "walk", 1, 1)
refused("1 to 400 calls, not 401", _core.cuda_call_ns, "event record", 401, 1)
refused("a round at least, not 0", _core.cuda_call_ns, "event record", 1, 0)
refused("not by 'walk'", _core.cuda_hop_ns, "walk", 1, 1)
refused("needs a stream", timer.start, [], True)
refused("was not stopped", timer.ns)
timer.start([stream.handle, other.handle], True)
refused("still held", timer.start, [stream.handle], True)
timer.stop([stream.handle, other.handle])
refused("still held", timer.ns)
timer.release()
assert timer.ns() >= 0
memory = _core.PinnedMemory(64)
view = memoryview(memory)
view[:] = bytes(range(64))
target = _core.PinnedMemory(64)
memoryview(target)[:] = bytes(64)
_core.take_cuda_call_times()
_core.cuda_copies(target.address, memory.address, 64, 16, 3, 2, stream.handle)
stream.synchronize()
assert bytes(memoryview(target)) == bytes(range(16)) + bytes(32) + bytes(range(48, 64))
calls = {name: count for name, (count, _) in _core.take_cuda_call_times().items()}
assert calls == {"memcpy_async": 2, "stream_synchronize": 1}, calls
refused("do not fit into 64", _core.cuda_copies, target.address, memory.address, 64, 65, 0, 1, stream.handle)
_core.CudaTimer().start([stream.handle], True)  # goes while it holds the stream
stream.synchronize()
"""


def test_what_cannot_be_timed_is_refused():
    environment = {**os.environ, "PIPERT_LIBCUDA": str(fake_cuda())}
    subprocess.run([sys.executable, "-c", MISUSE], check=True, timeout=20, env=environment)


def test_a_daemon_that_serves_nobody_is_no_measurement(tmp_path, monkeypatch):
    with pytest.raises(Unavailable, match="not on PATH"), mps.daemon():
        pass
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(f'#!/bin/sh\necho "$@" $(cat) "$CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/log\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unavailable, match="no process has used it"), mps.daemon() as environment:
        assert environment[mps.IN_USE] == "1"
    started, listed, ended = (tmp_path / "log").read_text().splitlines()
    folder = environment["CUDA_MPS_PIPE_DIRECTORY"]
    assert (started, listed, ended) == (f"-d {folder}", f"get_server_list {folder}", f"quit {folder}")
    assert not pathlib.Path(folder).exists()
