"""Run by each rank: things go wrong on one rank; every rank writes what it raised to DIRECTORY/scenario.rank."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from pipelines import TWO_WAY, pipeline
from torch import nn
from where import DEVICE

import pipert
from pipert import _core

GUILTY = 1


class Faulty(nn.Module):
    """Calls ``fault`` when the forward of a microbatch comes in its second step."""

    def __init__(self, module: nn.Module, microbatch: int, fault: Callable[[], None]):
        super().__init__()
        self.module = module
        self.calls_left = 6 + microbatch
        self.fault = fault

    def forward(self, *inputs):
        if self.calls_left == 0:
            self.fault()
        self.calls_left -= 1
        return self.module(*inputs)


def fail() -> None:
    raise ValueError("the stage is broken")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_the_device_works() -> None:
    """Give a CUDA device work for half a minute, and die before it is done, while the other ranks' devices wait."""
    _core.cuda_spin(torch.cuda.current_stream().cuda_stream, 30_000_000_000)
    threading.Timer(2.0, die).start()


def device_works() -> bool:
    """Whether the device still computes, after what has happened."""
    ones = torch.ones(64, 64, device=DEVICE)
    return (ones @ ones).sum().item() == 64.0**3


def report(directory: Path, name: str, error: BaseException, seconds: float) -> None:
    about = {
        "seconds": seconds,
        "device_works": device_works(),
        "type": type(error).__name__,
        "text": str(error),
        "rank": getattr(error, "rank", None),
        "op": getattr(error, "op", None),
        "step": getattr(error, "step", None),
        "cause": type(error.__cause__).__name__,
    }
    (directory / f"{name}.{dist.get_rank()}").write_text(json.dumps(about))


def run(directory: Path, name: str, fault: Callable[[], None] | None, *, timeout_ms: int = 60_000, **changes) -> None:
    """Two steps, the second of which fails on the guilty rank; one report per rank."""
    rank = dist.get_rank()
    pipe = pipeline("skip", changes.get("schedule", "1f1b"), 3)
    modules = pipe.copies(rank)
    if rank == GUILTY and fault is not None:
        modules[GUILTY, GUILTY] = Faulty(modules[GUILTY, GUILTY], 2, fault)
    targets = [*pipe.targets[:4], pipe.targets[4] * float("inf"), pipe.targets[5]]
    stages = changes.get("stages", lambda modules: modules)(modules)
    plan = changes.get("plan", lambda plan: plan)(pipe.plan)
    seed = rank if name == "other-seed" else 0
    transport = "nccl" if name == "nccl" else None
    start = time.monotonic()
    try:
        with pipert.Engine(
            plan,
            stages,
            pipe.loss_fn,
            process_group=dist.group.WORLD,
            timeout_ms=timeout_ms,
            seed=seed,
            transport=transport,
        ) as engine:
            engine.step(pipe.inputs, pipe.targets)
            (directory / f"{name}.{rank}.started").touch()
            inputs = pipe.inputs[:5] if name == "bad-data" else pipe.inputs
            start = time.monotonic()
            engine.step(inputs, targets if name == "not-finite" else pipe.targets)
    except BaseException as error:
        report(directory, name, error, time.monotonic() - start)
        if isinstance(error, KeyboardInterrupt):
            raise


def without_stages(modules):
    return {} if dist.get_rank() == GUILTY else modules


def with_other_weights(modules):
    if dist.get_rank() == 2:
        torch.nn.init.zeros_(modules[2, 0].up.weight)
    return modules


def another_plan(plan):
    if dist.get_rank() != GUILTY:
        return plan
    return pipert.compile(pipert.schedules.build("gpipe", num_ranks=3, num_microbatches=6))


def plan_for_two(_plan):
    return pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=6))


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:]
    scenarios = {
        "raise": lambda name: run(directory, name, fail),
        "not-finite": lambda name: run(directory, name, None),
        "timeout": lambda name: run(directory, name, lambda: time.sleep(3), timeout_ms=500),
        "missing-stages": lambda name: run(directory, name, None, stages=without_stages),
        "other-weights": lambda name: run(directory, name, None, schedule=TWO_WAY, stages=with_other_weights),
        "other-plan": lambda name: run(directory, name, None, plan=another_plan),
        "other-ranks": lambda name: run(directory, name, None, plan=plan_for_two),
        "other-seed": lambda name: run(directory, name, None),
        "nccl": lambda name: run(directory, name, None),
        "bad-data": lambda name: run(directory, name, None),
        "kill": lambda name: run(directory, name, die),
        "kill-waiting": lambda name: run(directory, name, die_while_the_device_works),
        "sleep": lambda name: run(directory, name, lambda: time.sleep(100)),
    }
    os.environ["PIPERT_DUMP_DIR"] = str(directory)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        scenarios[name](name)
    os._exit(0)  # the process group may have lost a rank


main()
