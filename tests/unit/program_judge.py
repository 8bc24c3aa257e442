"""Independent judges of a program, which share nothing with pipert's own replay and lowering."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipert.ir import Op, Program

UNIT = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0, "R": 1.0}


@dataclass
class Clock:
    """What an ASAP replay saw; times and activations are those of one stage and one microbatch."""

    makespan: float
    rank_spans: list[float]
    peaks: list[int]


def run(program: Program, times: dict[str, float] = UNIT, latency: float = 0.0) -> Clock:
    """Let every rank start its next op as soon as the inputs are there; an activation lives from F to B or W."""
    end: dict[tuple[str, int, int], float] = {}
    todo = [deque(ops) for ops in program.ranks]
    now = [0.0] * program.num_ranks
    first: list[float | None] = [None] * program.num_ranks
    held, peaks = [0] * program.num_ranks, [0] * program.num_ranks
    while any(todo):
        moved = False
        for rank, ops in enumerate(todo):
            while ops and all(key in end for key in _inputs(program, ops[0])):
                op = ops.popleft()
                inputs = _inputs(program, op)
                arrived = [end[key] + latency * (program.rank_of(*key[1:]) != rank) for key in inputs]
                start = max([now[rank], *arrived])
                first[rank] = start if first[rank] is None else first[rank]
                letters = [part.kind.text for part in op.unpacked]
                now[rank] = start + sum(times[letter] for letter in letters)
                end.update(dict.fromkeys(map(_result, op.unpacked), now[rank]))
                held[rank] += letters.count("F")
                peaks[rank] = max(peaks[rank], held[rank])
                held[rank] -= letters.count("B") + letters.count("W")
                moved = True
        assert moved, f"stuck at {[str(ops[0]) for ops in todo if ops]}"
    return Clock(max(now), [last - (start or 0.0) for last, start in zip(now, first, strict=True)], peaks)


def _result(op: Op) -> tuple[str, int, int]:
    return "G" if op.kind.text in "BI" else op.kind.text, op.stage, op.microbatch


def _inputs(program: Program, op: Op) -> list[tuple[str, int, int]]:
    """What an op reads; a pair, what its parts read of others."""
    if op.parts:
        made = [_result(part) for part in op.parts]
        return [key for part in op.parts for key in _inputs(program, part) if key not in made]
    letter, stage, mb = op.kind.text, op.stage, op.microbatch
    if letter == "F":
        return [("F", stage - 1, mb)] if stage else []
    if letter in "RW":
        return [("F" if letter == "R" else "G", stage, mb)]
    downstream = [("G", stage + 1, mb)] if stage + 1 < program.num_stages else []
    return [("F", stage, mb), *downstream]


def stuck_with_rendezvous(program: Program, recv_depth: int = 2) -> list[str]:
    """Replay with rendezvous transfers: per directed edge in the producer's order, ``recv_depth`` receives unused.

    A send happens when its receive is posted, and a receive is posted when fewer than ``recv_depth`` of its edge wait
    to be used. Returns the ops at which ranks are stuck in the end: none when the program can run.
    """
    rank_of, last = program.rank_of, program.num_stages - 1
    todo = [deque(ops) for ops in program.ranks]
    made: set[tuple[str, int, int]] = set()
    arrived: set[tuple[str, int, int]] = set()
    outbox: dict[tuple[int, int], deque[tuple[str, int, int]]] = {}
    unused: dict[tuple[int, int], int] = {}

    def advance(rank: int) -> bool:
        inputs = [(key, rank_of(*key[1:])) for key in _inputs(program, todo[rank][0])]
        if not all(key in (made if source == rank else arrived) for key, source in inputs):
            return False
        for _, source in inputs:
            if source != rank:
                unused[source, rank] -= 1
        for part in todo[rank].popleft().unpacked:
            letter, stage, mb = _result(part)
            made.add((letter, stage, mb))
            target = {"F": stage + 1, "G": stage - 1}.get(letter, -1)
            if 0 <= target <= last and rank_of(target, mb) != rank:
                outbox.setdefault((rank, rank_of(target, mb)), deque()).append((letter, stage, mb))
        return True

    moved = True
    while moved:
        moves = [advance(rank) for rank in range(program.num_ranks) if todo[rank]]
        moved = any(moves)
        for edge, messages in outbox.items():
            while messages and unused.get(edge, 0) < recv_depth:
                arrived.add(messages.popleft())
                unused[edge] = unused.get(edge, 0) + 1
                moved = True
    return [str(ops[0]) for ops in todo if ops]
