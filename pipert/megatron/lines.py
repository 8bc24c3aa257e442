"""Lines for the user, on the rank that has something to say."""

from __future__ import annotations

import os
import sys


def say(line: str) -> None:
    """Print ``line`` on standard error, with the rank that says it."""
    print(f"pipert: rank {os.environ.get('RANK', '0')}: {line}", file=sys.stderr, flush=True)
