"""Runs steps of a plan, for a tool to look at: ``nvtx_steps.py WHAT [ARGUMENT ...]``."""

import sys

from plan_driver import Driver

import pipert
from pipert import _core, passes

NUM_STEPS = 2
NUM_MICROBATCHES = 4


def nbytes(text, step):
    """Some messages are so large that the lane's own thread sends them."""
    return 600_000 if text[-1] in "13579" else 10 + step


def plan_of(name):
    """``zb-v``; ``post-validation``, ``sharded``: plans with ops of a rank and of a whole stage."""
    make = {"post-validation": passes.post_validation, "sharded": passes.shard}.get(name, lambda program: program)
    schedule = name if name not in ("post-validation", "sharded") else "1f1b"
    return pipert.compile(make(pipert.schedules.build(schedule, num_ranks=2, num_microbatches=NUM_MICROBATCHES)))


def run(driver):
    for step in range(NUM_STEPS):
        driver.step(step)
    driver.close()


def local(name):
    plan = plan_of(name)
    run(Driver(plan, _core.Channels.local(plan.native), range(2), nbytes=nbytes))


def shm(name, rank, session):
    plan = plan_of(name)
    run(Driver(plan, _core.Channels.shm(plan.native, int(rank), session, 20_000), [int(rank)], nbytes=nbytes))


def failing(name, text):
    plan = plan_of(name)
    driver = Driver(plan, _core.Channels.local(plan.native), range(2), nbytes=nbytes)

    def fail():
        raise ValueError("boom")

    driver.before[text] = fail
    try:
        driver.step(0)
    except ValueError:
        driver.close()


def engine(name):
    import torch
    from torch import nn

    plan = plan_of(name)
    stages = {stage: nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for stage in range(plan.num_stages)}
    with pipert.Engine(plan, stages, nn.functional.mse_loss) as engine:
        for _ in range(NUM_STEPS):
            engine.step(torch.randn(2 * NUM_MICROBATCHES, 6), torch.randn(2 * NUM_MICROBATCHES, 6))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
