"""torch.distributed.pipelining's schedules, run by torch and by pipert's adapter in the same four processes."""

import sys
from pathlib import Path

from pipert import launch

SCRIPT = str(Path(__file__).parent / "rank_torch_pipelining.py")


def test_the_adapter_has_the_bits_of_torch(tmp_path, capfd):
    assert launch.run([sys.executable, SCRIPT, str(tmp_path)], 4) == 0, capfd.readouterr().err
    done = [line for line in capfd.readouterr().out.split("\n") if line.endswith("done")]
    assert sorted(done) == [f"rank {rank} done" for rank in range(4)]
