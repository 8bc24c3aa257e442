"""One process per rank, over shared memory: the bits of the reference and of all ranks in one process."""

import subprocess
import sys
from pathlib import Path

from pipert import launch

SCRIPT = str(Path(__file__).parent / "rank_bits.py")


def test_four_ranks_under_the_own_launcher(capfd):
    assert launch.run([sys.executable, SCRIPT], 4) == 0
    assert sorted(capfd.readouterr().out.split("\n")) == ["", *(f"rank {rank} done" for rank in range(4))]


def test_two_ranks_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    command += ["1f1b", "zb-v", "two-way"]
    subprocess.run(command, check=True, timeout=100)
