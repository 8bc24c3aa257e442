"""Schedule generators: sizes in, a program out."""

from pipert.schedules.forward_only import forward_only
from pipert.schedules.registry import SCHEDULES, Schedule, build, names

__all__ = ["SCHEDULES", "Schedule", "build", "forward_only", "names"]
