"""Four processes, each with its shard: the unsplit layer's losses and gradients."""

import sys
from pathlib import Path

from pipert import launch

SCRIPT = str(Path(__file__).parent / "rank_vocab_layer.py")


def test_four_ranks(capfd, tmp_path):
    assert launch.run([sys.executable, SCRIPT, str(tmp_path)], 4) == 0
    printed = capfd.readouterr().out
    assert all(f"rank {rank} done" in printed for rank in range(4))
