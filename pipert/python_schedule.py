"""A schedule in a user's Python file: a function from a request to a program, or to rows of op texts."""

from __future__ import annotations

import inspect
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipert.errors import ConfigError, PipertError, PlanError
from pipert.ir import Op, Program
from pipert.ir.rows import from_rows
from pipert.passes import validate
from pipert.schedules import Request

DEFAULT_FUNCTION = "schedule"


def make_program(path: str, function: str, request: Request) -> Program:
    """Run a user's file, call its function, and check what it returns.

    Args:
        path: the file.
        function: the name of a function in it that takes a ``Request`` and returns a ``Program``, or the rows of one:
            for each rank a list of ops or of their texts (``["0F0", "0B0"]``).
        request: what the function is called with.

    Raises:
        ConfigError: the file cannot be read, fails, or has no such function.
        PlanError: what the function returns is no valid program of the requested sizes.
        Both name the file and the line: of the statement that failed, else of the function.
    """
    with _told_by_line(path):
        made = _load(path, function)
        returned = made(request)
        if not isinstance(returned, Program) and isinstance(returned, Iterable):
            returned = [list(row) for row in returned]  # generators fail here, if they do
    try:
        program = _read(returned, _name(path, function))
        _check_sizes(program, request)
        validate(program)
    except PlanError as error:
        raise PlanError(f"{_place(path, made)}: {error}", rank=error.rank, op=error.op) from error
    return program


def _load(path: str, function: str) -> Callable[[Request], Any]:
    """Run the file, as a module that can import the files beside it, and return the function."""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    stem = os.path.splitext(os.path.basename(path))[0]
    module = types.ModuleType(f"pipert_schedule_{stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    exec(compile(source, path, "exec"), module.__dict__)
    found = getattr(module, function, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    own = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    known = f"its functions are {', '.join(own)}" if own else "there is no function in it"
    raise ConfigError(f"{path}: expected a function {function}(request); {known}")


@contextmanager
def _told_by_line(path: str) -> Iterator[None]:
    """Let the file import its neighbours, and turn what it raises into one message with its line."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _line(path, error)
        if line is None and isinstance(error, PipertError):  # our own words about the file
            raise
        place = path if line is None else f"{path}:{line}"
        kind = PlanError if isinstance(error, PlanError) else ConfigError
        name = "" if isinstance(error, PipertError) else f"{type(error).__name__}: "
        text = error.msg if isinstance(error, SyntaxError) else error
        raise kind(f"{place}: {name}{text}") from error
    finally:
        sys.path.pop(0)


def _line(path: str, error: BaseException) -> int | None:
    """Find the line of the file at which it failed; None if not within it."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else None


def _place(path: str, function: Callable[[Request], Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{path}:{code.co_firstlineno}" if code else path


def _name(path: str, function: str) -> str:
    file = os.path.basename(path)
    return file if function == DEFAULT_FUNCTION else f"{file}:{function}"


def _read(returned: Any, name: str) -> Program:
    """Make sure of the types of what a user's function returns, and give it its name."""
    if isinstance(returned, Program):
        rows = [_ops(rank, row) for rank, row in enumerate(returned.ranks)]
        paths = tuple(_numbers("paths", path) for path in returned.paths)
        return Program(name, paths, _numbers("path_of", returned.path_of), tuple(map(tuple, rows)))
    if not isinstance(returned, list):
        raise PlanError(f"expected a pipert.Program, or for each rank a list of ops, got {returned!r}")
    rows = [_ops(rank, row) for rank, row in enumerate(returned)]
    return from_rows(name, rows, where=lambda rank, index: f"rank {rank}, op {index}")


def _ops(rank: int, row: Iterable[Any]) -> list[Op]:
    ops = []
    for index, item in enumerate(row):
        try:
            ops.append(item if isinstance(item, Op) else Op.parse(item))
        except (PlanError, TypeError):
            expected = "expected an op, like pipert.Op.parse('2F0') or its text"
            raise PlanError(f"rank {rank}, op {index}: {expected}, got {item!r}", rank=rank) from None
    return ops


def _numbers(what: str, values: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, values))
    except TypeError as error:
        raise PlanError(f"{what} of the program: expected whole numbers: {error}") from None


def _check_sizes(program: Program, request: Request) -> None:
    for what, got, asked in (
        ("ranks", program.num_ranks, request.num_ranks),
        ("microbatches", program.num_microbatches, request.num_microbatches),
    ):
        if got != asked:
            raise PlanError(f"expected a program of {asked} {what}, as requested, got one of {got}")
