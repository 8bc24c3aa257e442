"""``pipert profile`` as a user runs it: around ``pipert train``, other commands, and with a stand-in for nsys."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from array import array

import pytest

import pipert
from pipert.trace import Trace, read_chrome, write_chrome

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
import nsys_export  # noqa: E402

PLAN = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
SMALL = ["--layers=2", "--dim=16", "--heads=2", "--seq-len=16", "--batch-size=1", "--microbatches=2", "--data=text"]
TRAIN = ["pipert", "train", "--schedule=1f1b", "--ranks=2", "--steps=4", *SMALL]

SCRIPT = """
import torch
from torch import nn
import pipert

plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
engine = pipert.Engine(plan, {0: nn.Linear(8, 8), 1: nn.Linear(8, 8)}, nn.functional.mse_loss)
for _ in range(4):
    engine.step(torch.randn(4, 8), torch.randn(4, 8))
print("trained")
"""

# Stands in for a script of ranks that recorded steps 1 to 3, and needs no second to start.
RECORD = """
echo trained
cp "$HERE/recorded-${RANK:-both}.json" "$PIPERT_PROFILE_DIR/process-$$-engine-0.json"
exit $1
"""

# Understands what pipert asks of nsys, and writes down how it was called. The report comes from the test.
NSYS = """#!/bin/bash
[ "$1" = --version ] && { echo "NVIDIA Nsight Systems version 2025.1.1"; exit $VERSION_CODE; }
(IFS=' '; echo "$*" >> "$HERE/nsys.calls")
command=$1; shift
while [[ "$1" == --* ]]; do
    [[ "$1" == --output=* ]] && output=${1#--output=}
    shift
done
if [ "$command" = export ]; then
    cp "$HERE/prepared.sqlite" "$output" || { echo "no such report" >&2; exit 1; }
    exit
fi
[ -n "$REFUSES" ] && { echo "unrecognised option" >&2; exit 1; }
"$@"
code=$?
[ -z "$NO_REPORT" ] && touch "${output//%q\\{RANK\\}/$RANK}.nsys-rep"
exit $code
"""


def write_recorded(folder):
    """Write what ranks would have, or one process (which is predicted to run them in turn): F takes 1 ms, B 2 ms."""
    trace = pipert.simulate(PLAN, pipert.Costs.per_rank(F=1, I=1, W=1)).trace
    start, end = (array("d", [1e6 * time for time in column]) for column in (trace.start, trace.end))
    for name, ranks in (("both", (0, 1)), ("0", (0,)), ("1", (1,))):
        part = Trace(PLAN, *(array("d", column) for column in (start, end, start)), "ns", origin_ns=time.monotonic_ns())
        for op in range(PLAN.num_ops):
            if PLAN.rank_of(op) not in ranks:
                part.start[op] = part.end[op] = part.ready[op] = math.nan
        steps = [(f"step {step}", dataclasses.replace(part, step=step)) for step in (1, 2, 3)]
        write_chrome(folder / f"recorded-{name}.json", steps)


@pytest.fixture
def profile(tmp_path):
    """Run the command in a folder with a text and a script in it."""
    (tmp_path / "text").write_bytes(b"".join(b"%d squared is %d. " % (i, i * i) for i in range(2000)))
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "record.sh").write_text(RECORD)
    write_recorded(tmp_path)
    nowhere = tmp_path / "bin"  # before all else on PATH, so that no nsys of the machine is found behind it
    nowhere.mkdir()
    path = os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep) if not pathlib.Path(folder, "nsys").exists()
    )

    def profile(*arguments, start=False, **environment):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{nowhere}{os.pathsep}{path}",
            "HERE": str(tmp_path),
            **environment,
        }
        command = [sys.executable, "-m", "pipert", "profile", *arguments]
        options = {"cwd": tmp_path, "env": environment, "text": True}
        if start:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return subprocess.Popen(command, start_new_session=True, **pipes, **options)
        return subprocess.run(command, capture_output=True, timeout=100, **options)

    return profile


@pytest.fixture
def nsys(profile, tmp_path):
    """Put the stand-in for nsys on PATH, with a report of step 1 and 2 of the script."""
    (tmp_path / "bin" / "nsys").write_text(NSYS)
    (tmp_path / "bin" / "nsys").chmod(0o755)
    main = nsys_export.thread(100, 1)
    export = nsys_export.Export()
    export.domain("pipert", 1, main)
    now = 0
    for step, kernel_ms in ((1, 3), (2, 3)):
        begin = now
        for text in PLAN.op_text:
            export.range(text, now + 1, now + 10, main)
            if "SEND" not in text and "RECV" not in text:
                export.launch(main, now + 5, now + 20, now + 20 + kernel_ms * 1_000_000)
                now += kernel_ms * 1_000_000
            now += 100
        export.range(f"pipert step {step}", begin, now, main, domain=0)
    export.write(tmp_path / "prepared.sqlite")

    def run(*arguments, **environment):
        done = profile(*arguments, **{"VERSION_CODE": "0", **environment})
        calls = tmp_path / "nsys.calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_training_in_one_process(profile, tmp_path):
    done = profile("--steps=1:3", "--", *TRAIN, "--one-process")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout  # the command's own output
    table = done.stdout[done.stdout.index("1f1b: 2 ranks, 2 stages, 2 microbatches · step ") :].splitlines()
    titles = "rank compute predicted exposed p2p predicted exposed copies crypto idle predicted"
    assert " ".join(table[1].split()) == titles
    assert [line.split()[0] for line in table[2:4]] == ["0", "1"]
    assert table[4] == "measured: steps 1, 2, the median of 2; the engines' own trace"
    assert table[6] == "runs/profile: trace.json, timeline.html, plan.json"
    assert "\x1b" not in done.stdout + done.stderr
    folder = tmp_path / "runs" / "profile"
    assert [name for name, _ in read_chrome(folder / "trace.json")] == ["measured", "predicted"]
    assert pipert.Plan.load(folder / "plan.json").num_ranks == 2
    assert (folder / "timeline.html").stat().st_size > 10_000


def test_training_in_two_processes_as_json(profile, tmp_path):
    stale = tmp_path / "out" / "process-1-engine-0.json"
    stale.parent.mkdir()
    stale.write_text("of an earlier run")
    done = profile("--json", "-o", "out", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stderr
    [found] = json.loads(done.stdout)["profiles"]
    assert (found["name"], found["num_ranks"], found["steps"]) == ("1f1b", 2, [2, 3])
    assert found["source"].startswith("the engines' own trace")
    for rank, row in enumerate(found["ranks"]):
        assert row["rank"] == rank
        for side in ("measured", "predicted"):
            parts = row[side]
            assert parts["exposed_copies_ms"] is parts["crypto_ms"] is None
            assert parts["compute_ms"] > 0
    predicted = found["ranks"][0]["predicted"]
    total = predicted["compute_ms"] + predicted["exposed_p2p_ms"] + predicted["idle_ms"]
    assert total == pytest.approx(found["step_ms"]["predicted"])
    assert len(list((tmp_path / "out").glob("process-*.json"))) == 2


def test_a_script_of_ones_own(profile):
    done = profile("--steps", "1:9", "--", sys.executable, "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained\n1f1b: 2 ranks")
    assert "steps 1, 2, 3, the median of 3" in done.stdout


def test_the_exit_code_is_the_commands(profile):
    done = profile("--steps", "1:2", "sh", "record.sh", "7")  # no -- is needed
    assert done.returncode == 7
    assert "1f1b: 2 ranks, 2 stages, 2 microbatches · step 9.00 ms, predicted 12.00 ms" in done.stdout
    done = profile("--", "/bin/sh", "-c", "exit 3")
    assert done.returncode == 3
    assert "the command failed with exit code 3, and nothing was profiled" in done.stderr
    assert profile("--", "/bin/sh", "-c", "kill -KILL $$").returncode == 137


@pytest.mark.parametrize(("signum", "name"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "INT")])
def test_signals_reach_the_command(profile, tmp_path, signum, name):
    command = f"trap 'exit 6' {name}; touch ready; while :; do sleep 0.05; done"
    process = profile("--", "/bin/bash", "-c", command, start=True)
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.02)
        if signum == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        assert process.wait(timeout=30) == 6
        assert "the command failed with exit code 6" in process.stderr.read()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_each_engine_has_a_table(profile, tmp_path):
    copies = [
        f'cp "$HERE/recorded-both.json" "$PIPERT_PROFILE_DIR/process-1-engine-{engine}.json"' for engine in (3, 7)
    ]
    done = profile("-o", "out", "--", "/bin/sh", "-c", " && ".join(copies))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1f1b: 2 ranks") == 2
    for engine in (0, 1):
        assert f"out/engine-{engine}: trace.json, timeline.html, plan.json" in done.stdout
        assert (tmp_path / "out" / f"engine-{engine}" / "trace.json").exists()


def test_nothing_profiled_is_an_error(profile):
    done = profile("--", "/bin/true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was profiled: the command made no pipert.Engine" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--steps=3:1", "--", "touch", "ran"], "B must be larger than A"),
        (["--steps=3", "--", "touch", "ran"], "steps are given as A:B"),
        (["-o", "text", "--", "touch", "ran"], "the folder text cannot be used: File exists"),
        (["--", "no-such-program"], "cannot start 'no-such-program': No such file"),
    ],
)
def test_refusals(profile, tmp_path, arguments, text):
    done = profile(*arguments)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_under_nsys_the_report_tells(nsys, tmp_path):
    done, calls = nsys("--json", "-o", "out", "--", "sh", "record.sh")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    run, export = calls
    assert run.startswith(
        "profile --trace=cuda,nvtx --sample=none --cpuctxsw=none --cuda-graph-trace=node --capture-range="
    )
    assert f"--output={out}/nsys /bin/sh" in run
    assert run.endswith(f"{out}/nsys.began sh record.sh")
    assert export == "export --type=sqlite --force-overwrite=true --output=out/nsys.sqlite out/nsys.nsys-rep"
    [found] = json.loads(done.stdout)["profiles"]
    assert found["source"] == "nsys: 16 ops timed on the device, 16 on the host, 0 transfers by the engine"
    assert found["steps"] == [1, 2]  # step 3 is not in the report
    assert [row["measured"]["compute_ms"] for row in found["ranks"]] == pytest.approx([12, 12])
    assert found["step_ms"]["predicted"] == pytest.approx(24, rel=1e-3)


@pytest.mark.parametrize(
    ("environment", "text", "runs"),
    [
        ({"VERSION_CODE": "9"}, "nsys --version failed with exit code 9", 0),
        ({"REFUSES": "1"}, "nsys did not start the command (exit code 1), so it is run without", 1),
        ({"NO_REPORT": "1"}, "nsys made no report (it makes none of a run that does not use CUDA)", 1),
    ],
)
def test_when_nsys_fails_the_engines_trace_tells(nsys, environment, text, runs):
    done, calls = nsys("--", "sh", "record.sh", **environment)
    assert done.returncode == 0, done.stderr
    assert text in done.stderr
    assert "steps 1, 2, 3, the median of 3; the engines' own trace" in done.stdout
    assert done.stdout.count("trained") == 1
    assert len(calls) == runs


def test_when_the_report_is_of_no_use_the_engines_trace_tells(nsys, tmp_path):
    (tmp_path / "prepared.sqlite").write_text("")
    done, _ = nsys("--", "sh", "record.sh")
    assert "exported by nsys of an unknown version: there is no table" in done.stderr
    assert "the engines' own trace" in done.stdout
    (tmp_path / "prepared.sqlite").unlink()
    done, _ = nsys("--", "sh", "record.sh")
    assert "nsys export failed with exit code 1: " in done.stderr
    assert "no such report" in done.stderr
    assert "the engines' own trace" in done.stdout


def test_each_rank_of_torchrun_has_its_own_nsys(nsys, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done, calls = nsys("-o", "out", "--", *torchrun, "--no-python", "sh", "record.sh")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls] == ["profile", "profile", "export", "export"]
    assert all("/out/nsys-rank%q{RANK} " in call for call in calls[:2])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nsys-rep")) == [
        "nsys-rank0.nsys-rep",
        "nsys-rank1.nsys-rep",
    ]
    assert "steps 1, 2, the median of 2; nsys: 16 ops timed on the device" in done.stdout
