"""Traces: when each op of a plan ran, on the virtual clock or on the real one, and what that amounts to."""

from pipert.trace.chrome import read_chrome, write_chrome
from pipert.trace.report import Report, measure
from pipert.trace.trace import RankClock, Trace

__all__ = ["RankClock", "Report", "Trace", "measure", "read_chrome", "write_chrome"]
