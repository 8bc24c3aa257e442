"""The text to learn from; without torch, so that mistakes show at once."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError

_NOT_LIBRARY = frozenset({"dist-packages", "idlelib", "site-packages", "test", "tests"})


@dataclass(frozen=True, slots=True)
class Text:
    """Some bytes, and where they are from."""

    content: bytearray
    source: str

    def require(self, num_bytes: int) -> None:
        """Raise ConfigError if the text is shorter than one batch, ``num_bytes``."""
        if len(self.content) < num_bytes:
            raise ConfigError(
                f"the text of {self.source} has {len(self.content):,} bytes, one batch needs {num_bytes:,}: "
                "take more text, or a smaller --batch-size, --microbatches or --seq-len"
            )


def load_text(path: Path | None) -> Text:
    """Read a file, or every file under a folder in the order of their names; by default Python's standard library.

    Hidden files and folders are left out; of the standard library the ``.py`` files are taken, without its tests.

    Raises:
        ConfigError: the path is not there, cannot be read, or holds nothing.
    """
    if path is None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in _files(folder, _NOT_LIBRARY) if file.suffix == ".py"]
        source = f"Python's standard library ({folder})"
    else:
        files = list(_files(path)) if path.is_dir() else [path]
        source = str(path)
    content = bytearray()
    for file in files:
        try:
            content += file.read_bytes()
        except OSError as error:
            raise ConfigError(f"--data {file} cannot be read: {error.strerror}") from error
    if not content:
        raise ConfigError(f"{source} holds no text")
    return Text(content, source)


def _files(folder: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ConfigError(f"--data {error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))
