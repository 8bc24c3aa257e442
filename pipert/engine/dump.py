"""Where every lane stands, written to a file when a run hangs or ends: on SIGUSR1, a timeout, a lost rank."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipert.engine.engine import Engine

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def watch(engine: Engine) -> None:
    """Dump ``engine`` when SIGUSR1 comes, unless the program handles that signal itself."""
    _engines.add(engine)
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _on_signal)


def forget(engine: Engine) -> None:
    """No longer dump ``engine``: it is closed."""
    _engines.discard(engine)


def default_path(ranks: tuple[int, ...]) -> Path:
    """Return the file for a process's dump: in ``$PIPERT_DUMP_DIR``, or the directory for temporary files."""
    name = f"pipert-dump-rank{'-'.join(map(str, ranks))}-{os.getpid()}.json"
    return Path(os.environ.get("PIPERT_DUMP_DIR") or tempfile.gettempdir()) / name


def write(path: str | os.PathLike[str], about: dict[str, Any]) -> None:
    """Write a dump, whole or not at all; its folder is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_text(json.dumps({"format": "pipert-dump", "time": time.time(), **about}, indent=1))
    partial.replace(target)


def _on_signal(_signum: int, _frame: object) -> None:
    for engine in list(_engines):
        try:
            engine.dump()
        except OSError as error:
            print(f"pipert: no dump was written: {error}", file=sys.stderr)
