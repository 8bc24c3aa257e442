"""What a cross entropy can be asked for beside the plain one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipert.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LossOptions:
    """The loss of a token: ``lse - (1 - label_smoothing) z_y - label_smoothing mean(z) + z_loss lse²``.

    ``z`` are the logits after the soft cap, ``lse`` their log-sum-exp over the whole (real) vocabulary.

    Attributes:
        ignore_index: tokens with this target have no loss and no gradient.
        label_smoothing: ε, spread over the whole real vocabulary; in [0, 1).
        z_loss: λ, at least 0.
        soft_cap: ``z = soft_cap tanh(logit / soft_cap)``; None for none. Not together with ``label_smoothing``,
            whose gradient would then have no low rank.
    """

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if not (math.isfinite(self.z_loss) and self.z_loss >= 0):
            raise ConfigError(f"z_loss must be at least 0, not {self.z_loss}")
        if self.soft_cap is not None and not (math.isfinite(self.soft_cap) and self.soft_cap > 0):
            raise ConfigError(f"soft_cap must be above 0, not {self.soft_cap}")
        if self.label_smoothing > 0 and self.soft_cap is not None:
            raise ConfigError(
                "label_smoothing and soft_cap cannot be used together: the smoothing's gradient would then depend on "
                "every logit, and no longer leave T a single matrix product; give one of them"
            )
