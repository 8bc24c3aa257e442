"""Traces: when each op of a plan ran, on the virtual clock or on the real one, and what that amounts to."""

from pipert.trace.chrome import is_trace_file, read_chrome, read_step, write_chrome
from pipert.trace.explain import Explanation, IdleTimes, PathStep, explain
from pipert.trace.report import Report, measure
from pipert.trace.trace import RankClock, Trace

__all__ = [
    "Explanation",
    "IdleTimes",
    "PathStep",
    "RankClock",
    "Report",
    "Trace",
    "explain",
    "is_trace_file",
    "measure",
    "read_chrome",
    "read_step",
    "write_chrome",
]
