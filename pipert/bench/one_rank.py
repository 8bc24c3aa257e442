"""What the runtime costs per compute op on one rank, where the compute is next to nothing."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pipert
from pipert.bench import hand
from pipert.bench.figure import Figure
from pipert.bench.models import Workload, tiny
from pipert.bench.peer import PeerPipeline
from pipert.engine import Engine, StepResult
from pipert.ops import OpKind

NUM_MICROBATCHES = 8
ROUNDS = 40
STEPS_A_ROUND = 4


@dataclass(frozen=True, slots=True)
class Round:
    """CPU times of one step of each side, in µs."""

    hand: float
    ours: float
    peer: float


def measure() -> list[Figure]:
    """Return the overhead per op over a hand-written loop, for full and for split backwards."""
    return [*_full_backward(), *_split_backward()]


def _full_backward() -> list[Figure]:
    num_ops, rounds, setting = _compare("interleaved", num_stages=3, split=False)
    ours, peer = _overheads(rounds, num_ops)
    name = "overhead per op, one rank, F/B"
    return [Figure.of(name, "µs", ours, peer, bar=0.25, relative=True, setting=setting)]


def _split_backward() -> list[Figure]:
    num_ops, rounds, setting = _compare("zb-v", num_stages=2, split=True)
    ours, peer = _overheads(rounds, num_ops)
    name = "overhead per op, one rank, F/I/W"
    return [Figure.of(name, "µs", ours, peer, setting=setting), _input_and_weight_gradients()]


def _overheads(rounds: list[Round], num_ops: int) -> tuple[list[float], list[float]]:
    """Return ours and the peer's, per op, of every round."""
    ours = [(times.ours - times.hand) / num_ops for times in rounds]
    peer = [(times.peer - times.hand) / num_ops for times in rounds]
    return ours, peer


def _compare(schedule: str, *, num_stages: int, split: bool) -> tuple[int, list[Round], str]:
    work = tiny(range(num_stages), num_stages, NUM_MICROBATCHES)
    program = pipert.schedules.build(schedule, num_ranks=1, num_microbatches=NUM_MICROBATCHES, num_chunks=num_stages)
    num_ops = len(program.ranks[0])
    loop = hand.Loop(copy.deepcopy(work), NUM_MICROBATCHES, split=split)
    peer = PeerPipeline(schedule, copy.deepcopy(work.stages), num_stages, NUM_MICROBATCHES, work.loss_fn)
    with Engine(pipert.compile(program), work.stages, work.loss_fn) as engine:
        rounds = [_round(work, loop, engine, peer) for _ in range(ROUNDS + 1)][1:]
    loop_us = statistics.median(times.hand for times in rounds) / num_ops
    setting = f"{schedule}, {num_stages} stages, {num_ops} ops; hand-written loop {loop_us:.1f} µs an op"
    return num_ops, rounds, setting


def _round(work: Workload, loop: hand.Loop, engine: Engine, peer: PeerPipeline) -> Round:
    return Round(
        hand=_step_us(loop.step),
        ours=_step_us(lambda: engine.step(work.inputs, work.targets)),
        peer=_step_us(lambda: peer.step(work.inputs, work.targets)),
    )


def _step_us(step: Callable[[], object]) -> float:
    """Return the CPU time of a step: one thread works, and other processes do not disturb it."""
    start = time.process_time()
    for _ in range(STEPS_A_ROUND):
        step()
    return (time.process_time() - start) / STEPS_A_ROUND * 1e6


def _input_and_weight_gradients() -> Figure:
    """Compare the backward ops alone: the engine's trace, and a clock around the loop's backward of a microbatch."""
    work = tiny(range(2), 2, NUM_MICROBATCHES)
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=1, num_microbatches=NUM_MICROBATCHES))
    backwards = [op for op in plan.compute_ops(0) if plan.ops[op].kind in (OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD)]
    loop = hand.Loop(copy.deepcopy(work), NUM_MICROBATCHES, split=True)
    durations = []
    with Engine(plan, work.stages, work.loss_fn) as engine:
        for _ in range(ROUNDS * STEPS_A_ROUND):
            loop.step()
            durations.append(_durations_us(engine.step(work.inputs, work.targets)))
    ours = sum(statistics.median(step[op] for step in durations) for op in backwards)
    by_hand = statistics.median(loop.backward_seconds) * 1e6 * NUM_MICROBATCHES
    setting = f"zb-v, 2 stages; hand-written split {by_hand / len(backwards):.1f} µs an op"
    return Figure("overhead per I or W, one rank", "µs", (ours - by_hand) / len(backwards), bar=10.0, setting=setting)


def _durations_us(result: StepResult) -> list[float]:
    """Return the time of each op of one rank, counted from the end of the op before it."""
    trace = result.trace
    ends = [trace.start[0], *trace.end]
    return [(end - before) / 1e3 for before, end in itertools.pairwise(ends)]
