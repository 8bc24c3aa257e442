"""What a user names, made into a program or a plan: a schedule of the table, or a file that holds one.

The files are plans (``.json``), PyTorch's schedules (``.csv``) and Python files with a function that makes a schedule
(``my.py``, or ``my.py:function``). Every command takes all of them through here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipert import python_schedule, schedules
from pipert.activation import check_memory
from pipert.costs import Costs
from pipert.errors import ConfigError, PlanError
from pipert.ir import Op, Program
from pipert.ir.csv import from_csv
from pipert.lowering import compile
from pipert.lowering.lowered_csv import is_lowered, plan_from_csv
from pipert.lowering.mend import mending_swap
from pipert.ops import LaneKind
from pipert.passes import post_validation, validate, vocab_parallel
from pipert.plan import Plan
from pipert.schedules import Effort, Request

MAX_CSV_CHARACTERS = 1 << 29


@dataclass(frozen=True, slots=True)
class Source:
    """A schedule that was named and found.

    Attributes:
        place: where it comes from, for messages: a schedule's name or a file.
        made: what stood there: compute ops, or a plan with its transfers.
    """

    place: str
    made: Program | Plan

    def program(self) -> Program:
        """Return the program; of a plan, all but its transfers."""
        if isinstance(self.made, Program):
            return self.made
        plan = self.made
        rows: list[list[Op]] = [[] for _ in range(plan.num_ranks)]
        for op, lane in zip(plan.ops, plan.op_lane, strict=True):
            if op.kind.lane not in (LaneKind.SEND, LaneKind.RECV):
                rows[plan.lanes[lane].rank].append(op)
        return Program(plan.name, plan.paths, plan.path_of, tuple(map(tuple, rows)))

    def with_post_validation(self) -> Source:
        """Return the same program with the optimizer's step in it; see :func:`pipert.passes.post_validation`."""
        return Source(self.place, post_validation(self.program()))

    def with_vocab_parallel(self, algorithm: int, costs: Costs | None, memory_limit: float | None = None) -> Source:
        """Return the same program with its vocabulary split over the ranks: :func:`pipert.passes.vocab_parallel`."""
        return Source(self.place, vocab_parallel(self.program(), algorithm, costs, memory_limit))

    def plan(self) -> Plan:
        """Return the plan: as it came, else the program lowered and verified.

        Raises:
            PlanError: the program would deadlock; the message begins with the place.
        """
        if isinstance(self.made, Plan):
            return self.made
        with _named(self.place):
            try:
                return compile(self.made)
            except PlanError as error:
                swap = mending_swap(self.made, compile) if str(error).startswith("deadlock") else None
                hint = f"\n{swap}" if swap else ""
                raise PlanError(f"{error}{hint}", rank=error.rank, op=error.op) from error


def load(
    target: str,
    *,
    ranks: int | None = None,
    microbatches: int | None = None,
    chunks: int | None = None,
    costs: Costs | None = None,
    memory_limit: float | None = None,
    effort: Effort | None = None,
) -> Source:
    """Find what ``target`` names.

    Args:
        target: the name of a schedule, ``my.py`` or ``my.py:function``, a ``.csv`` or a plan file.
        ranks: p, which a schedule's name and a Python file need and other files have.
        microbatches: m, likewise.
        chunks: stages per rank, where the schedule leaves a choice.
        costs: what ops cost, by default F = I = W = 1; for schedules made from costs and for the memory limit.
        memory_limit: the most activation that a rank may hold, in the unit of the costs' ``act``.
        effort: how a schedule that is searched for is searched for.

    Raises:
        ConfigError: there is no such file or schedule, sizes are missing or do not belong to it, a Python file fails,
            or the memory limit cannot be kept.
        PlanError: the file holds no valid program or plan.
    """
    if not takes_sizes(target):
        _refuse_sizes(target, ranks, microbatches, chunks)
        source = _read_csv(target) if target.endswith(".csv") else Source(target, Plan.load(target))
        if memory_limit is not None:
            check_memory(source.program(), costs or Costs.per_rank(), memory_limit)
        return source
    if not is_file(target) and target not in schedules.names():
        raise ConfigError(f"{target!r} is neither a file nor a schedule; {schedules.hint(target)}")
    if ranks is None or microbatches is None:
        raise ConfigError(f"schedule {target!r} needs --ranks and --microbatches")
    make = _make_from_file if is_file(target) else schedules.build
    program = make(
        target,
        num_ranks=ranks,
        num_microbatches=microbatches,
        num_chunks=chunks,
        costs=costs,
        memory_limit=memory_limit,
        effort=effort,
    )
    return Source(target, program)


def takes_sizes(target: str) -> bool:
    """Whether what ``target`` names is made for any number of ranks and microbatches: a schedule, or a Python file."""
    return not is_file(target) or _is_python(target)


def is_file(target: str) -> bool:
    """Whether ``target`` means a file, and not a schedule of the table."""
    if target in schedules.names():
        return False
    return os.path.exists(target) or os.sep in target or target.endswith((".json", ".csv")) or _is_python(target)


def _refuse_sizes(target: str, ranks: int | None, microbatches: int | None, chunks: int | None) -> None:
    for option, size in (("--ranks", ranks), ("--microbatches", microbatches), ("--chunks", chunks)):
        if size is not None:
            raise ConfigError(f"{option} goes with a schedule's name; {target!r} is a file and has its own sizes")


def _is_python(target: str) -> bool:
    return target.endswith(".py") or ".py:" in target


def _make_from_file(
    target: str,
    *,
    num_ranks: int,
    num_microbatches: int,
    num_chunks: int | None,
    costs: Costs | None,
    memory_limit: float | None,
    effort: Effort | None,
) -> Program:
    """Do what ``schedules.build`` does, for ``my.py`` or ``my.py:function``."""
    costs = costs or Costs.per_rank()
    request = Request(
        num_ranks,
        num_microbatches,
        1 if num_chunks is None else num_chunks,
        costs,
        memory_limit,
        effort or Effort(),
        free_chunks=num_chunks is None,
    )
    path, found, function = target.rpartition(".py:")
    program = (
        python_schedule.make_program(f"{path}.py", function, request)
        if found
        else python_schedule.make_program(target, python_schedule.DEFAULT_FUNCTION, request)
    )
    if memory_limit is not None:
        check_memory(program, costs, memory_limit)
    return program


def _read_csv(path: str) -> Source:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read(MAX_CSV_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: not UTF-8 at byte {error.start}") from error
    if len(text) > MAX_CSV_CHARACTERS:
        raise PlanError(f"{path}: a schedule has at most {MAX_CSV_CHARACTERS} characters, this has more")
    with _named(path):
        if is_lowered(text):
            return Source(path, plan_from_csv(text, name=os.path.basename(path)))
        program = from_csv(text, name=os.path.basename(path))
    try:
        validate(program)
    except PlanError as error:
        line = "" if error.rank is None else f" line {error.rank + 1}:"
        raise PlanError(f"{path}:{line} {error}", rank=error.rank, op=error.op) from error
    return Source(path, program)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Begin the message of a fault with the place where it is."""
    try:
        yield
    except PlanError as error:
        raise PlanError(f"{place}: {error}", rank=error.rank, op=error.op) from error
