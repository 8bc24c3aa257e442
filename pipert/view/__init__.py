"""Pictures of plans and traces: a self-contained interactive page, and a still picture."""

from pipert.view.page import write_timeline
from pipert.view.svg import timeline_svg

__all__ = ["timeline_svg", "write_timeline"]
