"""Reads a report of Nsight Systems, exported as SQLite: when each op of a plan ran on the device.

What the tables hold (the documentation of the export, "SQLite Export Schema Reference", and its examples):

- ``NVTX_EVENTS``: ranges have a start and an end, an event of type 75 makes a domain. A text stands in ``text``, or, if
  it was registered and in all newer versions, in ``StringIds`` under ``textId``. Domain ids are a process's own.
- ``CUPTI_ACTIVITY_KIND_RUNTIME``: calls, by thread. What a call put on the device stands in ``…_KERNEL``,
  ``…_MEMCPY`` or ``…_MEMSET`` under the same ``correlationId``, which is a process's own too.
- ``globalTid`` holds the thread in its low 24 bits and the process above; ``globalPid`` is the same with a thread of 0.
- Times are ns from the start of the session, ``TARGET_INFO_SESSION_START_TIME.utcEpochNs``.

Tables are made when something is to stand in them, and columns come and go with the version: all are looked for first.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from urllib.parse import quote

from pipert.errors import ConfigError
from pipert.profile.step_range import step_of

_DOMAIN = "pipert"
_DOMAIN_CREATE = 75
_THREAD_BITS = 0xFFFFFF
_DEVICE_WORK = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")
_CALLS = "CUPTI_ACTIVITY_KIND_RUNTIME"
_RANGES = "NVTX_EVENTS"
_STRINGS = "StringIds"
_SESSION = "TARGET_INFO_SESSION_START_TIME"
_ABOUT = "META_DATA_EXPORT"


@dataclass(frozen=True, slots=True)
class Span:
    """When one op ran, in ns since the epoch (UTC).

    Attributes:
        start: when its first piece of work began on the device.
        end: when its last one ended.
        on_device: whether it had work there; if not, the times are those of its range, on the host.
    """

    start: int
    end: int
    on_device: bool


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    end: int
    thread: int
    text: str

    @property
    def process(self) -> int:
        return self.thread & ~_THREAD_BITS


@dataclass(frozen=True, slots=True)
class _Work:
    """A piece of work on the device, and the call that put it there."""

    thread: int
    called: int
    start: int
    end: int

    @property
    def process(self) -> int:
        return self.thread & ~_THREAD_BITS


def read_report(path: Path, computes: Mapping[str, bool]) -> dict[int, dict[str, Span]]:
    """Read when ops ran, per step and by their text, of every process in the report.

    A piece of device work is the op's in whose range, on the same thread, it was called. A thread without such a range
    (autograd calls backward kernels on one of its own) works for the op that its process computes at that time.

    Args:
        path: what ``nsys export --type sqlite`` made.
        computes: the ops that are looked for, by their text: whether each is of a compute lane.

    Raises:
        ConfigError: the file is no such export, or lacks what is needed; the message names the table or column, and the
            version of Nsight Systems.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as connection:
            database = _Database(path.name, connection)
            epoch = database.session_start()
            steps, ops = _split(database, database.ranges(), computes)
            work = database.device_work(processes={op.process for op in ops})
    except sqlite3.Error as error:
        raise ConfigError(f"{path.name} cannot be read as an nsys export: {error}") from error
    found: dict[int, dict[str, Span]] = defaultdict(dict)
    for op, pieces in zip(ops, _assign(ops, work, computes), strict=True):
        step = _step_at(steps[op.process], op.start)
        if step is not None:
            found[step][op.text] = _span(op, pieces, epoch)
    return dict(found)


class _Database:
    """An export. Every table and column is looked for before it is read."""

    def __init__(self, name: str, connection: sqlite3.Connection) -> None:
        self._name, self._connection = name, connection
        tables = [
            str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        ]
        self._columns = {
            table: {str(row[1]) for row in connection.execute(f'PRAGMA table_info("{table}")')} for table in tables
        }

    def fault(self, text: str) -> ConfigError:
        """Return the error that something is not as it must be."""
        return ConfigError(f"{self._name}, exported by nsys {self._version()}: {text}")

    def ranges(self) -> list[_Range]:
        """Return all closed NVTX ranges of the domain, and those of steps, by start."""
        columns = self._require(_RANGES, "start", "end", "globalTid")
        texts = [name for name in ("text", "textId") if name in columns]
        if not texts:
            raise self.fault(f"table {_RANGES} has neither a column text nor textId")
        text, join = "n.text", ""
        if "textId" in texts:
            self._require(_STRINGS, "id", "value")
            text = "COALESCE(NULLIF(n.text, ''), s.value)" if "text" in texts else "s.value"
            join = f"LEFT JOIN {_STRINGS} AS s ON s.id = n.textId"
        domain = "n.domainId" if "domainId" in columns else "NULL"
        domains = self._domains(columns, text, join)
        rows = self._connection.execute(
            f'SELECT n.start, n."end", n.globalTid, {text}, {domain} FROM {_RANGES} AS n {join} '
            f'WHERE n."end" >= n.start AND {text} IS NOT NULL ORDER BY n.start, n."end" DESC'
        )
        found = []
        for start, end, thread, text_found, domain_id in rows:
            each = _Range(start, end, thread, text_found)
            ours = domains.get(each.process)
            if ours is None or domain_id in ours or step_of(text_found) is not None:
                found.append(each)
        return found

    def device_work(self, processes: set[int]) -> list[_Work]:
        """Return what ran on the device, with the calls; nothing if nothing did."""
        tables = [table for table in _DEVICE_WORK if table in self._columns]
        found: list[_Work] = []
        for table in tables:
            self._require(_CALLS, "start", "globalTid", "correlationId")
            columns = self._require(table, "start", "end", "correlationId")
            same_process = f"AND w.globalPid = (c.globalTid & {~_THREAD_BITS})"
            if "globalPid" not in columns:
                if len(processes) > 1:
                    raise self.fault(
                        f"table {table} has no column globalPid, so work of several processes cannot be told apart"
                    )
                same_process = ""
            found += [
                _Work(*row)
                for row in self._connection.execute(
                    f'SELECT c.globalTid, c.start, w.start, w."end" FROM {_CALLS} AS c JOIN {table} AS w '
                    f"ON w.correlationId = c.correlationId {same_process}"
                )
            ]
        return found

    def session_start(self) -> int:
        """Return when the session started, in ns since the epoch."""
        self._require(_SESSION, "utcEpochNs")
        row = self._connection.execute(f"SELECT utcEpochNs FROM {_SESSION}").fetchone()
        if row is None:
            raise self.fault(f"table {_SESSION} is empty")
        return int(row[0])

    def _domains(self, columns: set[str], text: str, join: str) -> dict[int, set[int]]:
        """Return the ids of the domain by process; a process of which none is known is left out."""
        if not {"domainId", "eventType"} <= columns:
            return {}
        found: dict[int, set[int]] = defaultdict(set)
        for thread, domain in self._connection.execute(
            f"SELECT n.globalTid, n.domainId FROM {_RANGES} AS n {join} WHERE n.eventType = ? AND {text} = ?",
            (_DOMAIN_CREATE, _DOMAIN),
        ):
            found[thread & ~_THREAD_BITS].add(domain)
        return found

    def _require(self, table: str, *columns: str) -> set[str]:
        there = self._columns.get(table)
        if there is None:
            raise self.fault(f"there is no table {table}")
        for column in columns:
            if column not in there:
                raise self.fault(f"table {table} has no column {column}; it has {', '.join(sorted(there))}")
        return there

    def _version(self) -> str:
        if not {"name", "value"} <= self._columns.get(_ABOUT, set()):
            return "of an unknown version"
        about = dict(self._connection.execute(f"SELECT name, value FROM {_ABOUT}").fetchall())
        product, schema = (about.get(f"EXPORT_{name}_VERSION", "unknown") for name in ("PRODUCT", "SCHEMA"))
        return f"{product} (schema {schema})"


def _split(
    database: _Database, ranges: Sequence[_Range], computes: Mapping[str, bool]
) -> tuple[dict[int, list[tuple[int, int, int]]], list[_Range]]:
    """Return the steps of each process as (start, end, step), and the ranges of ops, both by start."""
    steps: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for each in ranges:
        step = step_of(each.text)
        if step is not None:
            steps[each.process].append((each.start, each.end, step))
    if not steps:
        raise database.fault(f"table {_RANGES} has no range of a step: nothing was captured from its start to its end")
    ops = [each for each in ranges if each.text in computes and each.process in steps]
    if not ops:
        raise database.fault(f"table {_RANGES} has no range of an op of the plan (domain {_DOMAIN})")
    return steps, ops


def _step_at(steps: Iterable[tuple[int, int, int]], time: int) -> int | None:
    return next((step for start, end, step in steps if start <= time <= end), None)


def _assign(ops: Sequence[_Range], work: Sequence[_Work], computes: Mapping[str, bool]) -> list[list[_Work]]:
    """Return for each op its pieces of work."""
    pieces: dict[int, list[_Work]] = defaultdict(list)
    by_thread, computing = defaultdict(list), defaultdict(list)
    for index, op in enumerate(ops):
        by_thread[op.thread].append(index)
        if computes[op.text]:
            computing[op.process].append(index)
    elsewhere: list[_Work] = []
    for found, piece in _innermost(ops, by_thread, work, attrgetter("thread")):
        (elsewhere if found is None else pieces[found]).append(piece)
    for found, piece in _innermost(ops, computing, elsewhere, attrgetter("process")):
        if found is not None:
            pieces[found].append(piece)
    return [pieces[index] for index in range(len(ops))]


def _innermost(
    ops: Sequence[_Range], places: Mapping[int, Sequence[int]], work: Iterable[_Work], place_of: attrgetter[int]
) -> Iterator[tuple[int | None, _Work]]:
    """Go through the work with the last begun of those ops, of its place, that were open when it was called."""
    queues = {place: list(reversed(indices)) for place, indices in places.items()}
    opened: dict[int, list[int]] = defaultdict(list)
    for piece in sorted(work, key=attrgetter("called")):
        place = place_of(piece)
        queue, still_open = queues.get(place, []), opened[place]
        while queue and ops[queue[-1]].start <= piece.called:
            still_open.append(queue.pop())
        still_open[:] = [index for index in still_open if ops[index].end >= piece.called]
        yield (still_open[-1] if still_open else None), piece


def _span(op: _Range, pieces: Sequence[_Work], epoch: int) -> Span:
    if not pieces:
        return Span(epoch + op.start, epoch + op.end, on_device=False)
    return Span(
        epoch + min(piece.start for piece in pieces), epoch + max(piece.end for piece in pieces), on_device=True
    )
