"""Forks the ranks of runs from a process that has megatron-core imported already, which costs seconds a process.

Reads a request per line, as JSON: ``command`` (what torchrun would start), ``num_ranks``, ``environment``, ``output``
(a file) and ``timeout_s``. Answers each with a line: the exit codes of the ranks.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings

_WARM = (
    "megatron.core.distributed",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.optimizer",
    "megatron.core.datasets.indexed_dataset",
    "megatron.core.pipeline_parallel.schedules",
    "pipert.engine",
    "pipert.cli",
)


def main():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what megatron-core lacks on this machine
        for name in _WARM:
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


def _serve(request):
    num_ranks = request["num_ranks"]
    common = request["environment"] | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
    }
    pids = []
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
            _redirect(request["output"])
            os._exit(_run(request["command"]))
        pids.append(pid)
    return _wait(pids, time.monotonic() + request["timeout_s"])


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _redirect(output):
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _run(command):
    """Do as ``python`` does with ``command``; return the exit code."""
    code = 0
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            sys.path[0] = os.path.dirname(os.path.abspath(command[0]))
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _wait(pids, deadline):
    codes = {}
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main()
