"""The split backward on Megatron's layers: the bits of a full backward (split_cases.py, in processes of its own)."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from split_cases import CASES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.core") is None,
    reason="megatron-core is not installed",
)

SCRIPT = Path(__file__).with_name("split_cases.py")


@functools.cache
def results(ranks):
    """Run all cases for this many ranks, and return what failed (None if nothing) by name; and the errors' text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT],
            env={**os.environ, **variables, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    failures, errors = {}, ""
    for process in processes:
        try:
            output, error = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()
            output, error = process.communicate()
        errors += error
        for line in output.splitlines():
            if line.startswith('{"name"'):
                result = json.loads(line)
                failures[result["name"]] = failures.get(result["name"]) or result["failure"]
    return failures, errors


@pytest.mark.parametrize("name", CASES)
def test_megatron_layers_have_the_bits_of_a_full_backward(name):
    failures, errors = results(CASES[name][0])
    assert name in failures, f"did not run:\n{errors}"
    assert failures[name] is None, failures[name]
