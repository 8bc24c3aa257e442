"""Peers that are not installed, from a folder of wheels: for machines without a package index."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from pipert.errors import ConfigError

VARIABLE = "PIPERT_PEERS"


@functools.cache
def add_to_path() -> None:
    """Make what is in the wheels of the folder that ``PIPERT_PEERS`` names importable, unless it is installed.

    They are unpacked, as Triton reads its kernels' sources from files.

    Raises:
        ConfigError: there is no such folder.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError(f"{VARIABLE} is to name a folder of wheels; {name!r} is none")
    unpacked = tempfile.mkdtemp(prefix="pipert-peers-")
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    sys.path.append(unpacked)
