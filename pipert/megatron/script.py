"""Runs a user's script as ``python script.py …`` would."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path

from pipert.errors import ConfigError, StageError


def check_script(script: list[str]) -> Path:
    """Return the path of a script that is given with its arguments.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(script[0])
    if not path.is_file():
        raise ConfigError(f"there is no script {path}; pipert's own options stand before it")
    return path


def run_script(script: list[str]) -> None:
    """Run ``script``, a file and its arguments, in this process.

    Raises:
        StageError: a function of the script raised in an op; where it did so stands on standard error.
    """
    path = check_script(script)
    sys.argv = script
    sys.path[0] = str(path.parent.resolve())
    try:
        runpy.run_path(str(path), run_name="__main__")
    except StageError as error:
        traceback.print_exception(error.__cause__)
        raise
