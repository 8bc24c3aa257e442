"""The drop-in engine beside Megatron-core's own schedules: `make bench`.

With a small GPT and a core per rank, steps of both alternate, in the same order of ops: what the engine costs less.
With chunks that sleep a profile (F = I = W), 4 ranks: whether a schedule gains over Megatron's 1F1B what the simulation
says.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from figures import measure

import pipert
from pipert.bench.figure import Figure

MEGATRON = Path(__file__).parents[1] / "megatron"
NUM_STEPS = {"real": 21, "timed": 9}
COSTS = pipert.Costs.per_rank(F=20.0, I=20.0, W=20.0)  # ms, as in rank_step_time.py


def step_times(kind, num_ranks, *runs):
    """Return the times of the steps, in ms: a list per run, a (schedule, chunks) each."""
    request = json.dumps({"kind": kind, "steps": NUM_STEPS[kind], "runs": runs})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(MEGATRON.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(MEGATRON / "rank_step_time.py"), request]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return list(zip(*json.loads(done.stdout.splitlines()[-1]), strict=True))


def real():
    setting = "GPT, 8 layers of 128, 2 ranks on a core each, m=8; peer: Megatron-core's own"
    figures = []
    for schedule, chunks in (("1f1b", 1), ("interleaved", 2)):
        own, ours = step_times("real", 2, (None, chunks), (schedule, chunks))
        figures.append(Figure.of(f"step, {schedule}", "ms", ours, own, bar=0.98, relative=True, setting=setting))
    return figures


def makespan(schedule):
    program = pipert.schedules.build(schedule, num_ranks=4, num_microbatches=8, costs=COSTS)
    return pipert.simulate(pipert.compile(program), COSTS).makespan


def timed():
    """Measure the gain as the ratio of step times; its bar is 95% of the predicted ratio.

    Each schedule has processes of its own: Megatron's own does not run while chunks are placed in a V.
    """
    figures = []
    [own] = step_times("timed", 4, (None, 1))
    for schedule, chunks in (("zb-1p", 1), ("zb-v", 2)):
        [ours] = step_times("timed", 4, (schedule, chunks))
        gains = [statistics.median(own) / after for after in ours]
        predicted = makespan("1f1b") / makespan(schedule)
        setting = f"F=I=W=20 ms slept, 4 ranks, m=8; predicted {predicted:.3f}"
        name = f"Megatron's 1F1B over {schedule}"
        figures.append(Figure.of(name, "", gains, bar=0.95 * predicted, at_least=True, setting=setting))
    return figures


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="megatron-core is not installed")
@pytest.mark.parametrize("part", [real, timed])
def test_part(benchmark, part):
    measure(benchmark, part)
