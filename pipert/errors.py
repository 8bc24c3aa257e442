"""What pipert raises. The native core raises the same classes, through these definitions."""

from __future__ import annotations


class PipertError(Exception):
    """Base of every error that pipert raises on purpose.

    Attributes:
        rank: the rank that the error names, if any.
        op: the text of the op that the error names (``"2F0"``), if any.
        step: the step in which it happened, if any.
    """

    def __init__(
        self, message: str, *, rank: int | None = None, op: str | None = None, step: int | None = None
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.op = op
        self.step = step


class ConfigError(PipertError, ValueError):
    """An argument that cannot be honoured: an unknown schedule, sizes that do not divide, a bad path."""


class PlanError(PipertError, ValueError):
    """A program or plan that is malformed, incomplete, or would deadlock."""


class StageError(PipertError):
    """A stage raised; the stage's own exception is the ``__cause__``."""


class CudaError(PipertError):
    """A CUDA call failed."""


class TransportError(PipertError):
    """An edge between two ranks could not be made, or failed."""


class PeerLost(TransportError):
    """Another rank died or gave up; the message says which, and where it stood."""


class LaneTimeout(PipertError):
    """A lane waited longer than the engine's timeout."""


class AuthError(PipertError):
    """Sealed data did not authenticate."""
