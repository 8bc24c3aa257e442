"""Replaces an object of a module wherever it has been bound by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rebinding:
    """What was replaced.

    Attributes:
        undo: puts everything back.
    """

    undo: Callable[[], None]


def rebind(original: Any, replacement: Any) -> Rebinding:
    """Bind ``replacement`` to every name that ``original`` has in a loaded module.

    Its home is among them, so modules that are imported later bind the replacement.
    """
    places = [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if value is original
    ]

    def bind(value: Any) -> None:
        for module, name in places:
            setattr(module, name, value)

    bind(replacement)
    return Rebinding(lambda: bind(original))
