"""`pipert verify-dropin`: what it compares, and that it notices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_runs import needs_megatron

from pipert.megatron.verify import Comparison, Run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = str(HERE / "pretrain_gpt.py")


def verify(*arguments, script=(SCRIPT, "--pipeline-model-parallel-size", "2"), num_ranks=2):
    """Return what the command printed as JSON, and how it ended."""
    command = [sys.executable, "-c", "from pipert.cli import main; main()", "verify-dropin", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    ranks = ("--nproc-per-node", str(num_ranks))
    done = subprocess.run(
        [*command, *ranks, *arguments, "--", *script], capture_output=True, text=True, env=environment, timeout=110
    )
    return json.loads(done.stdout) if done.stdout.startswith("{") else None, done


@needs_megatron
def test_a_placement_in_a_v_has_the_same_bits_until_a_step_is_clipped():
    virtual = ("--virtual-pipeline-model-parallel-size", "2")
    found, done = verify("--schedule", "zb-v", script=(SCRIPT, "--pipeline-model-parallel-size", "2", *virtual))
    assert done.returncode == 0, done.stderr
    assert found["differing_losses"][0] == 0
    assert found["differing_gradients"][0] == {}
    assert all(value < 1e-5 for step in found["differing_gradients"] for value in step.values())
    assert found["num_losses"] == 3 * 8  # steps, microbatches
    assert found["num_gradients"] == 3 * 100
    assert found["megatron"]["step_time_ms"] > 0
    assert found["pipert"]["peak_memory_bytes"] > 1 << 20


@needs_megatron
def test_other_dropout_masks_are_noticed():
    options = ("--virtual-pipeline-model-parallel-size", "2", "--hidden-dropout", "0.1")
    script = (SCRIPT, "--pipeline-model-parallel-size", "2", *options)
    found, done = verify("--schedule", "breadth-first", "--steps", "1", script=script)
    assert done.returncode == 1
    assert found["differing_losses"][0] > 0
    assert found["differing_gradients"][0]


@needs_megatron
def test_a_script_that_raises_is_shown_and_ends_every_rank(tmp_path):
    script = tmp_path / "raises.py"
    source = Path(SCRIPT).read_text()
    bad = "    tokens = next(data_iterator)"
    assert bad in source
    raises = "    if mpu.get_pipeline_model_parallel_rank() == 1:\n        raise ValueError('a bad batch')\n"
    script.write_text(f"import sys; sys.path.insert(0, {str(HERE)!r})\n{source.replace(bad, raises + bad)}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [
            *torchrun,
            "-m",
            "pipert.megatron",
            "--pipert-runs",
            str(tmp_path),
            str(script),
            "--pipeline-model-parallel-size",
            "2",
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=110,
    )
    assert done.returncode != 0
    assert "rank 1, 1F0, step 0: ValueError: a bad batch" in done.stderr
    assert "in forward_step" in done.stderr  # the script's own traceback


@needs_megatron
@pytest.mark.parametrize(
    ("arguments", "script", "message"),
    [
        ((), ("nothing.py",), "there is no script nothing.py"),
        (("--steps", "9"), None, "ended before its 9 training step"),
        (("--costs", "F=-1"), None, "F"),
    ],
)
def test_mistakes_are_named(arguments, script, message):
    _, done = verify(*arguments, script=script or (SCRIPT, "--train-iters", "1"), num_ranks=1)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("losses", "gradients", "equal", "passes"),
    [
        ([0, 0], [{}, {}], True, True),
        ([0, 2], [{}, {"w": 1e-7}], False, True),
        ([0, 0], [{}, {"w": 1e-3}], False, False),
        ([0, 0], [{"w": 1e-7}, {}], False, False),
        ([1, 0], [{}, {}], False, False),
    ],
)
def test_only_rounding_after_the_first_step_passes(losses, gradients, equal, passes):
    comparison = Comparison(Run(1.0, 1), Run(1.0, 1), 4, losses, 4, gradients, 0)
    assert (comparison.equal, comparison.passes) == (equal, passes)
