"""A pipeline-parallel runtime in which the schedule is data.

>>> program = pipert.schedules.build("zb-v", num_ranks=4, num_microbatches=8)
>>> plan = pipert.compile(program)
>>> report = pipert.simulate(plan, pipert.Costs.per_rank(F=1.0, I=1.0, W=1.0))
>>> engine = pipert.Engine(plan, stages={0: first, 7: last}, loss_fn=loss_fn)
>>> result = engine.step(inputs, targets)

Everything is imported at first use, so that ``import pipert`` and the planning commands need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipert.errors import (
    AuthError,
    ConfigError,
    CudaError,
    LaneTimeout,
    PeerLost,
    PipertError,
    PlanError,
    StageError,
    TransportError,
)
from pipert.version import __version__

if TYPE_CHECKING:
    import pipert.schedules as schedules
    import pipert.stages as stages
    import pipert.trace as trace
    from pipert.engine import Engine, StepResult
    from pipert.ir import Op, Program
    from pipert.lowering import compile
    from pipert.ops import OpKind
    from pipert.plan import Plan
    from pipert.reference import reference_step
    from pipert.sim import Costs, Report, simulate
    from pipert.stages import Stage

_HOME = {
    "Costs": "pipert.sim",
    "Engine": "pipert.engine",
    "Op": "pipert.ir",
    "OpKind": "pipert.ops",
    "Plan": "pipert.plan",
    "Program": "pipert.ir",
    "Report": "pipert.sim",
    "Stage": "pipert.stages",
    "StepResult": "pipert.engine",
    "compile": "pipert.lowering",
    "reference_step": "pipert.reference",
    "simulate": "pipert.sim",
}
_SUBMODULES = ("schedules", "stages", "trace")

__all__ = [
    "AuthError",
    "ConfigError",
    "Costs",
    "CudaError",
    "Engine",
    "LaneTimeout",
    "Op",
    "OpKind",
    "PeerLost",
    "PipertError",
    "Plan",
    "PlanError",
    "Program",
    "Report",
    "Stage",
    "StageError",
    "StepResult",
    "TransportError",
    "__version__",
    "compile",
    "reference_step",
    "schedules",
    "simulate",
    "stages",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"pipert.{name}")
    raise AttributeError(f"module 'pipert' has no attribute {name!r}")
