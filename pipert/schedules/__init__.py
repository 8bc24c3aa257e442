"""Schedule generators: a request in, a program out."""

from pipert.schedules.forward_only import forward_only
from pipert.schedules.registry import SCHEDULES, Schedule, build, hint, names
from pipert.schedules.request import Effort, Request

__all__ = ["SCHEDULES", "Effort", "Request", "Schedule", "build", "forward_only", "hint", "names"]
