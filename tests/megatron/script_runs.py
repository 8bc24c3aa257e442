"""Runs of the training script for tests, and how what they dumped compares, bit by bit.

>>> reference = run("--pipeline-model-parallel-size", 4)
>>> other = run("--pipeline-model-parallel-size", 4, prefix=PIPERT + ("zb-1p",))
>>> assert not differences(reference, other)
"""

import atexit
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

needs_megatron = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None,
    reason="megatron-core is not installed: pip install -e '.[megatron]'",
)

SCRIPT = Path(__file__).with_name("pretrain_gpt.py")
PIPERT = ("-m", "pipert.megatron", "--pipert-schedule")
_ROOT = Path(__file__).parents[2]

_cache = {}


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        codes: the exit code of each rank; of torchrun alone where it started them.
        output: what all ranks wrote.
        folder: holds ``dump``, and ``runs`` where pipert ran.
    """

    codes: tuple[int, ...]
    output: str
    folder: Path

    @property
    def losses(self):
        """The loss of each iteration, as printed."""
        return [float(loss) for loss in re.findall(r"iteration \d+/\d+ .*lm loss: (\S+)", self.output)]

    @cached_property
    def dumps(self):
        """Every value that was dumped, by (iteration, place, name); losses are named ``loss/…``, by microbatch.

        The parts of a split output layer, ``output_layer.weight/…``, are put together.
        """
        values, parts = {}, {}
        for path in sorted((self.folder / "dump").glob("*.pt")):
            iteration, place = re.fullmatch(r"iteration(\d+)-(tp\d+-dp\d+)-pp.*", path.stem).groups()
            dump = torch.load(path, weights_only=True)
            for number, part in enumerate(dump["losses"]):
                values[int(iteration), place, f"loss/{number}"] = part["lm loss"]
            for name, gradient in dump["gradients"].items():
                name, _, part = name.partition("/")
                key = int(iteration), place, name
                target, key_there = (parts, (key, part)) if part else (values, key)
                assert key_there not in target, f"two ranks hold {key_there}"
                target[key_there] = gradient
        for key, part in sorted(parts):
            values[key] = torch.cat([values[key], parts[key, part]]) if key in values else parts[key, part]
        return values


@dataclass(frozen=True)
class Difference:
    """A dumped value that is not the same in two runs.

    Attributes:
        where: iteration, place and name.
        norm: of the difference, over the norm of the first run's value; inf where one run has no such value.
    """

    where: tuple[int, str, str]
    norm: float


def run(*arguments, prefix=(), num_ranks=4, script=SCRIPT, environment=None, timeout_s=180, torchrun=False, check=True):
    """Run ``script`` with ``--dump``, once per test session for the same request.

    Args:
        arguments: of the script; each is made a string.
        prefix: what stands between torchrun and the script, such as ``PIPERT + ("zb-1p",)``.
        num_ranks: how many processes.
        script: what to run.
        environment: variables to set.
        timeout_s: after that long every rank is killed.
        torchrun: start them as users do, not by forking a warm process.
        check: fail unless every rank ends with 0.
    """
    environment = {"OMP_NUM_THREADS": "1"} | (environment or {})
    key = (arguments, tuple(prefix), num_ranks, script, tuple(sorted(environment.items())), torchrun)
    if key not in _cache:
        folder = _scratch() / str(len(_cache))
        folder.mkdir()
        command = [*prefix, script, *arguments]
        if prefix[:2] == PIPERT[:2]:
            command[2:2] = ["--pipert-runs", folder / "runs"]
        if script == SCRIPT:
            command += ["--dump", folder / "dump"]
        command = [str(part) for part in command]
        _cache[key] = (_by_torchrun if torchrun else _by_server)(command, num_ranks, environment, folder, timeout_s)
    result = _cache[key]
    assert not check or not any(result.codes), f"exit codes {result.codes}:\n{result.output[-6000:]}"
    return result


def differences(first, second):
    """Compare everything that two runs dumped, to the bit; in the order of iterations and names."""
    found = []
    for where in sorted(first.dumps.keys() | second.dumps.keys()):
        a, b = first.dumps.get(where), second.dumps.get(where)
        if a is None or b is None or a.shape != b.shape:
            found.append(Difference(where, math.inf))
        elif not torch.equal(a, b):
            found.append(Difference(where, ((a - b).norm() / a.norm()).item()))
    assert first.dumps, "nothing was dumped"
    return found


def _by_torchrun(command, num_ranks, environment, folder, timeout_s):
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), *command],
        env=os.environ | environment,
        cwd=_ROOT,
        timeout=timeout_s,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return Run((ended.returncode,), ended.stdout, folder)


def _by_server(command, num_ranks, environment, folder, timeout_s):
    output = folder / "output.txt"
    request = {
        "command": command,
        "num_ranks": num_ranks,
        "environment": environment,
        "output": str(output),
        "timeout_s": timeout_s,
    }
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    codes = json.loads(server.stdout.readline() or "null")
    assert codes is not None, "the process that forks ranks has died; what it wrote is above"
    return Run(tuple(codes), output.read_text(errors="replace"), folder)


def _once(make):
    """Make a thing on first use; a test session has one of each."""
    made = []

    def get():
        if not made:
            made.append(make())
        return made[0]

    return get


@_once
def _scratch():
    folder = Path(tempfile.mkdtemp(prefix="pipert-megatron-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@_once
def _server():
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("rank_server.py"))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=_ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_stop, server)
    return server


def _stop(server):
    with contextlib.suppress(OSError):
        server.stdin.close()  # it ends with its input
    server.wait()
