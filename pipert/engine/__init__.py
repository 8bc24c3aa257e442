"""The engine: runs a plan's steps on real stages."""

from pipert.engine.engine import Engine
from pipert.engine.result import StepResult

__all__ = ["Engine", "StepResult"]
