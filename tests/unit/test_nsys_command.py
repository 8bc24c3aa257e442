"""Where nsys stands in the command line."""

import sys
from pathlib import Path

import pytest

from pipert.profile.nsys_command import under_nsys

OPTIONS = [
    "--trace=cuda,nvtx",
    "--sample=none",
    "--cpuctxsw=none",
    "--cuda-graph-trace=node",
    "--capture-range=cudaProfilerApi",
    "--capture-range-end=stop",
    "--force-overwrite=true",
]
BEGIN = ["/bin/sh", "-c", ': > "$0" && exec "$@"', "/f/nsys.began"]
ONE = ["/nsys", "profile", *OPTIONS, "--output=/f/nsys", *BEGIN]
PER_RANK = ["/nsys", "profile", *OPTIONS, "--output=/f/nsys-rank%q{RANK}", *BEGIN]
PYTHON = [sys.executable, "-u"]


@pytest.fixture(autouse=True)
def no_other_python(monkeypatch):
    monkeypatch.delenv("PYTHON_EXEC", raising=False)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py --steps 5", [*ONE, "python", "train.py", "--steps", "5"]),
        ("pipert train", [*ONE, "pipert", "train"]),
        (
            "torchrun --nproc-per-node 4 train.py --steps 5",
            ["torchrun", "--nproc-per-node", "4", "--no-python", *PER_RANK, *PYTHON, "train.py", "--steps", "5"],
        ),
        (
            "/bin/torchrun --standalone -m pipert train -m x",
            ["/bin/torchrun", "--standalone", "--no-python", *PER_RANK, *PYTHON, "-m", "pipert", "train", "-m", "x"],
        ),
        (
            "python3 -m torch.distributed.run --module pipert",
            ["python3", "-m", "torch.distributed.run", "--no-python", *PER_RANK, "python3", "-u", "-m", "pipert"],
        ),
        ("torchrun --no-python ./rank.sh 1", ["torchrun", "--no-python", *PER_RANK, "./rank.sh", "1"]),
        ("torchrun --nproc-per-node", [*ONE, "torchrun", "--nproc-per-node"]),  # torchrun says what is wrong
        ("python -m other train.py", [*ONE, "python", "-m", "other", "train.py"]),
    ],
)
def test_ranks_of_torchrun_get_one_each_other_commands_one_around(command, expected):
    assert under_nsys("/nsys", command.split(), Path("/f")) == expected


def test_torchrun_is_given_the_python_that_it_is_told_to_use(monkeypatch):
    monkeypatch.setenv("PYTHON_EXEC", "/other/python")
    assert under_nsys("/nsys", ["torchrun", "a.py"], Path("/f"))[-3:] == ["/other/python", "-u", "a.py"]
