"""The text to learn from, as bytes, and the batches cut from it."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipert.errors import ConfigError

_NOT_LIBRARY = frozenset({"dist-packages", "idlelib", "site-packages", "test", "tests"})


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text: ``text_N`` holds its bytes (uint8), ``source`` says where it is from."""

    text_N: Tensor
    source: str

    def batch(self, num_sequences: int, seq_len: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [num_sequences, seq_len] (int64): random places, drawn from (seed, step) alone.

        Raises:
            ConfigError: the text is shorter than one batch.
        """
        self.require(num_sequences * seq_len + 1)
        digest = hashlib.blake2b(f"{seed}/batch/{step}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        starts_B1 = torch.randint(len(self.text_N) - seq_len, (num_sequences, 1), generator=generator)
        windows = self.text_N[starts_B1 + torch.arange(seq_len + 1)].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def require(self, num_bytes: int) -> None:
        """Raise ConfigError if the text has fewer bytes."""
        if len(self.text_N) < num_bytes:
            raise ConfigError(
                f"the text of {self.source} has {len(self.text_N):,} bytes, one batch needs {num_bytes:,}: "
                "take more text, or a smaller --batch-size, --microbatches or --seq-len"
            )


def load_corpus(path: Path | None) -> Corpus:
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
        if not path.exists():
            raise ConfigError(f"--data {path}: no such file or folder")
        files = list(_files(path)) if path.is_dir() else [path]
        source = str(path)
    text = bytearray()
    for file in files:
        try:
            text += file.read_bytes()
        except OSError as error:
            raise ConfigError(f"--data: {file} cannot be read: {error.strerror}") from error
    if not text:
        raise ConfigError(f"{source} holds no text")
    return Corpus(torch.frombuffer(text, dtype=torch.uint8), source)


def _files(folder: Path, skipped: frozenset[str] = frozenset()) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ConfigError(f"--data: {error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))
