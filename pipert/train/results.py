"""The table at the end of a run: predicted beside measured."""

from __future__ import annotations

from rich.table import Table

from pipert.sim import Report
from pipert.train.progress import Monitor

TIMED_TOLERANCE = 0.05


def step_time_error(monitor: Monitor, predicted: Report) -> float:
    """Return by which share the measured step time is off the predicted one (whose unit is ms)."""
    return monitor.step_time_ms / predicted.makespan - 1


def table(monitor: Monitor, predicted: Report, caption: str) -> Table:
    """Return one row per rank, its compute time in a step, and one for the step."""
    result = Table(caption=caption, caption_justify="left", show_footer=True)
    step = ("step", _ms(predicted.makespan), _ms(monitor.step_time_ms))
    bubble = (f"{predicted.bubble_rate:.1%}", f"{monitor.bubble_rate:.1%}")
    titles = (
        "rank",
        "compute,\npredicted",
        "compute,\nmeasured",
        "bubble,\npredicted",
        "bubble,\nmeasured",
        "peak\nactivation",
    )
    for title, footer in zip(titles, (*step, *bubble, ""), strict=True):
        result.add_column(title, footer, justify="right")
    rows = zip(
        predicted.compute_times,
        monitor.compute_times_ms,
        monitor.bubble_rates,
        monitor.peak_activation_bytes,
        strict=True,
    )
    for rank, (predicted_ms, measured_ms, bubble_rate, peak) in enumerate(rows):
        predicted_bubble = 1 - predicted_ms / predicted.makespan
        result.add_row(
            str(rank), _ms(predicted_ms), _ms(measured_ms), f"{predicted_bubble:.1%}", f"{bubble_rate:.1%}", _size(peak)
        )
    return result


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes:,} B"
