"""Makes SQLite files as ``nsys export --type sqlite`` does, in the forms that its versions give them.

How the schema was derived: no file of nsys was at hand. Tables and columns are those that NVIDIA documents in "SQLite
Export Schema Reference" and "Common SQLite examples" of Nsight Systems (10.1, 2021.5 and 2024.x), cut down to what a
reader can need, with a few columns more that it must not trip over:

- The old form (up to 2019) declares every column NOT NULL and writes 0 or '' where there is nothing. NVTX texts stand
  in ``text``; domains are not told apart; kernels have no process.
- The form between (2020 to 2023) has ``domainId`` and ``globalPid``; a registered text stands in ``StringIds`` under
  ``textId``, any other in ``text``.
- The new form has every text in ``StringIds``, and NULL where there is nothing.
- ``globalTid`` is ((hardware << 8 | machine) << 24 | process) << 24 | thread, ``globalPid`` the same with thread 0;
  event types are 59 (push/pop range), 60 (start/end range), 34 (mark) and 75 (a domain is made).
"""

import sqlite3
from dataclasses import dataclass

PUSH_POP, MARK, DOMAIN_CREATE = 59, 34, 75
EPOCH = 1_700_000_000_000_000_000

RUNTIME = "start INT, end INT, eventClass INT, globalTid INT, correlationId INT, nameId INT, returnValue INT"
WORK = "start INT, end INT, deviceId INT, contextId INT, streamId INT, correlationId INT"
SESSION = "utcEpochNs INT, utcTime TEXT, localTime TEXT"


@dataclass(frozen=True)
class Form:
    """How a version of nsys writes an export."""

    version: str
    has_domains: bool = True
    has_processes: bool = True
    texts: str = (
        "ids"  # "plain": in text; "registered": of domain 1 in StringIds, of others in text; "ids": in StringIds
    )

    @property
    def nvtx(self):
        columns = ["start INT", "end INT", "eventType INT", "rangeId INT", "category INT", "color INT", "globalTid INT"]
        if self.texts != "ids":
            columns.append("text TEXT NOT NULL" if self.texts == "plain" else "text TEXT")
        columns += [] if self.texts == "plain" else ["textId INT"]
        columns += ["domainId INT"] if self.has_domains else []
        return ", ".join(columns)


OLD = Form("2019.5.2", has_domains=False, has_processes=False, texts="plain")
BETWEEN = Form("2022.4.1", texts="registered")
NEW = Form("2025.1.1")
FORMS = {"old": OLD, "between": BETWEEN, "new": NEW}


def thread(process, thread):
    """A globalTid."""
    return (1 << 56) | process << 24 | thread


class Export:
    """What is to stand in a file. Times are ns from the start of the session."""

    def __init__(self, form=NEW):
        self.form = form
        self.nvtx, self.calls, self.work = [], [], {}
        self.without = set()

    def domain(self, name, domain, thread):
        self.nvtx.append((0, None, DOMAIN_CREATE, name, domain, thread))

    def mark(self, text, time, thread, domain=0):
        self.nvtx.append((time, None, MARK, text, domain, thread))

    def range(self, text, start, end, thread, domain=1):
        self.nvtx.append((start, end, PUSH_POP, text, domain, thread))

    def launch(self, thread, called, start, end, table="KERNEL", correlation=None):
        correlation = len(self.calls) + 1 if correlation is None else correlation
        self.calls.append((called, called + 2, 0, thread, correlation, 1, 0))
        self.work.setdefault(f"CUPTI_ACTIVITY_KIND_{table}", []).append((start, end, 0, 1, 7, correlation, thread))

    def write(self, path):
        form = self.form
        tables = {
            "StringIds": ("id INTEGER PRIMARY KEY, value TEXT NOT NULL", self._strings()),
            "META_DATA_EXPORT": (
                "name TEXT, value TEXT",
                [("EXPORT_PRODUCT_VERSION", form.version), ("EXPORT_SCHEMA_VERSION", "3.1")],
            ),
            "TARGET_INFO_SESSION_START_TIME": (SESSION, [(EPOCH, "", "")]),
            "NVTX_EVENTS": (form.nvtx, [self._event(*event) for event in self.nvtx]),
            "CUPTI_ACTIVITY_KIND_RUNTIME": (RUNTIME, self.calls),
        }
        for name, rows in self.work.items():
            if form.has_processes:
                tables[name] = (f"{WORK}, globalPid INT", [(*row[:-1], row[-1] & ~0xFFFFFF) for row in rows])
            else:
                tables[name] = (WORK, [row[:-1] for row in rows])
        with sqlite3.connect(path) as database:
            for name, (columns, rows) in tables.items():
                if name in self.without or not rows:  # nsys makes a table when something is to stand in it
                    continue
                database.execute(f"CREATE TABLE {name} ({columns})")
                database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            for column in self.without - tables.keys():
                table, _, column = column.partition(".")
                if column:
                    database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.close()
        return path

    def _strings(self):
        return list(enumerate(["cudaLaunchKernel_v7000", *sorted({event[3] for event in self.nvtx})], start=1))

    def _event(self, start, end, kind, text, domain, thread):
        form = self.form
        nothing = 0 if form.texts == "plain" else None
        row = [start, nothing if end is None else end, kind, nothing, nothing, nothing, thread]
        string = next(number for number, value in self._strings() if value == text)
        registered = form.texts == "registered" and domain == 1 and kind == PUSH_POP
        if form.texts == "plain":
            row += [text]
        elif form.texts == "registered":
            row += ["" if registered else text, string if registered else None]
        else:
            row += [string]
        return (*row, domain) if form.has_domains else tuple(row)
