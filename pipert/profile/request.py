"""What ``pipert profile`` asks of the engines in the command that it runs; it travels in environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipert.errors import ConfigError

FOLDER_VARIABLE = "PIPERT_PROFILE_DIR"
STEPS_VARIABLE = "PIPERT_PROFILE_STEPS"

_RANGE = re.compile(r"([0-9]{1,18}):([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Request:
    """Which steps to keep, and where.

    Attributes:
        folder: every process writes one file per engine into it.
        steps: the steps of the training loop that are kept.
    """

    folder: Path
    steps: range

    @classmethod
    def from_environment(cls) -> Request | None:
        """Return what this process is asked for; None if it is not profiled.

        Raises:
            ConfigError: the steps are malformed, or missing.
        """
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            return None
        try:
            return cls(Path(folder), parse_steps(os.environ.get(STEPS_VARIABLE, "")))
        except ConfigError as error:
            raise ConfigError(f"the environment variable {STEPS_VARIABLE} beside {FOLDER_VARIABLE}: {error}") from None

    def file_of(self, process: int, engine: int) -> Path:
        """Return the file of one engine.

        Args:
            process: the process's id.
            engine: which engine of the process it is, in the order in which they were made; alike on all ranks.
        """
        return self.folder / f"process-{process}-engine-{engine}.json"

    def files(self) -> dict[int, list[Path]]:
        """Return the files that are there: of the first engine of every process, of the second one, and so on."""
        found: dict[int, list[Path]] = {}
        for path in sorted(self.folder.glob("process-*-engine-*.json")):
            found.setdefault(int(path.stem.rpartition("-")[2]), []).append(path)
        return dict(sorted(found.items()))

    def environment(self) -> Mapping[str, str]:
        """Return the variables that say all this to a process."""
        return {
            FOLDER_VARIABLE: str(self.folder.absolute()),
            STEPS_VARIABLE: f"{self.steps.start}:{self.steps.stop}",
        }


def parse_steps(text: str) -> range:
    """Read ``A:B``, the steps from A to B - 1.

    Raises:
        ConfigError: it is not two whole numbers, the second larger than the first.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigError(f"steps are given as A:B, the first one and the one after the last, not as {text!r}")
    first, stop = int(found[1]), int(found[2])
    if first >= stop:
        raise ConfigError(f"steps {text}: B must be larger than A; the steps are those from A to B - 1")
    return range(first, stop)
