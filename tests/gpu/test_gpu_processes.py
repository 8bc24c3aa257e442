"""A process for each rank, all on one GPU, over ipc: the bits of the reference and of all ranks in one process."""

from pathlib import Path

import pytest
from pipelines import SCHEDULES
from processes import assert_done, run_python, run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(150)]

HALVES = (SCHEDULES[::2], SCHEDULES[1::2])


@pytest.mark.parametrize("schedules", HALVES, ids=["even", "odd"])
def test_two_ranks_run_every_schedule(schedules):
    assert_done(run_ranks(2, "rank_bits.py", *schedules), 2)


def test_four_ranks():
    assert_done(run_ranks(4, "rank_bits.py", "1f1b", "zb-v", "chimera"), 4)


def test_post_validation():
    assert_done(run_ranks(3, "rank_post_validation.py"), 3)


def test_one_queue_for_all_streams_over_ipc():
    """As Megatron sets it: what a stream waits for then holds up all others that were enqueued behind it."""
    result = run_ranks(2, "rank_bits.py", "1f1b", "zb-v", "interleaved", "two-way", CUDA_DEVICE_MAX_CONNECTIONS="1")
    assert_done(result, 2)


def test_one_queue_for_all_streams_in_one_process():
    tests = [Path(__file__).with_name(name) for name in ("test_gpu_bits.py", "test_gpu_delays.py")]
    options = ["-q", "-m", "gpu", "-k", "zb-v or two-way or dualpipe or 1f1b", "-p", "no:cacheprovider"]
    code, out, errors = run_python("-m", "pytest", *options, *tests, CUDA_DEVICE_MAX_CONNECTIONS="1")
    assert code == 0, out[-4000:] + errors[-2000:]
    assert " passed" in out
