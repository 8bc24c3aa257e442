"""A split vocabulary with a process per rank: the unsplit model's numbers; and failures on the way to a meeting."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from pipert import launch

SCRIPT = str(Path(__file__).parent / "rank_split_vocabulary.py")


def test_four_ranks_train_as_the_unsplit_model(capfd):
    assert launch.run([sys.executable, SCRIPT, "train", "1f1b", "zb-v", "v-half"], 4) == 0
    assert sorted(capfd.readouterr().out.split("\n")) == ["", *(f"rank {rank} done" for rank in range(4))]


def ranks(*arguments: str) -> list[tuple[str, int]]:
    """Run three ranks that nobody ends when one of them does; return what each returned and said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            env={**os.environ, **where, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        return [(process.communicate(timeout=90)[0], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def test_a_stage_that_raises_ends_all_ranks():
    assert ranks("raises") == [("rank 0: PeerLost\n", 0), ("rank 1: StageError\n", 0), ("rank 2: PeerLost\n", 0)]


def test_a_rank_that_dies_ends_all_ranks():
    assert ranks("dies") == [("rank 0: PeerLost\n", 0), ("", 7), ("rank 2: PeerLost\n", 0)]
