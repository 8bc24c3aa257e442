"""The searched schedules on the Zero Bubble paper's measured times, beside what the paper reached (arXiv 2401.10241).

The bubbles are over the longest rank's span, by `pipert.simulate`; the paper's have four digits, and so have these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pipert
from pipert.bench.figure import Figure
from pipert.schedules import Effort


@dataclass(frozen=True, slots=True)
class Row:
    """One row of tables 5 and 6: sizes, times in ms, and the bubbles of ZB-1p and ZB-2p.

    Attributes:
        layer: hidden size h, heads a and sequence length s: 34h + 5as is held a token before I, 32h before W.
    """

    num_ranks: int
    num_microbatches: int
    F: float
    I: float  # noqa: E741
    W: float
    p2p: float
    layer: tuple[int, int, int]
    one_p: float
    two_p: float

    @property
    def costs(self) -> pipert.Costs:
        """The row's costs, with the activations of a rank's share of a microbatch as the unit of memory."""
        hidden, heads, sequence = self.layer
        act_w = 32 * hidden / (34 * hidden + 5 * heads * sequence)
        return pipert.Costs.per_rank(F=self.F, I=self.I, W=self.W, p2p=self.p2p, act=1.0, act_w=act_w)


_SMALL, _LARGE = (2304, 24, 1024), (5120, 40, 1024)
ROWS = (
    Row(8, 24, 18.522, 18.086, 9.337, 0.601, _SMALL, 0.1585, 0.0433),
    Row(8, 32, 18.513, 18.086, 9.331, 0.626, _SMALL, 0.1242, 0.0039),
    Row(8, 64, 18.546, 18.097, 9.321, 0.762, _SMALL, 0.0674, 0.0026),
    Row(16, 48, 11.347, 11.248, 8.132, 0.377, _LARGE, 0.1397, 0.0066),
    Row(16, 64, 11.307, 11.254, 8.101, 0.379, _LARGE, 0.1088, 0.0054),
    Row(16, 128, 11.325, 11.308, 8.109, 0.378, _LARGE, 0.0576, 0.0028),
)


def measure(row: Row) -> list[Figure]:
    """Compare ZB-1p, ZB-2p, auto under ZB-1p's limit, and the least limit with which auto reaches ZB-2p."""
    size = f"{row.num_ranks} x {row.num_microbatches}"
    one_p, two_p, auto = (
        round(_bubble(row, name, limit), 4)
        for name, limit in (("zb-1p", None), ("zb-2p", None), ("auto", row.num_ranks))
    )
    least = _least_share(row)
    return [
        Figure(f"zb-1p {size}", "", one_p, row.one_p, bar=1.0, relative=True, setting="peer: the paper's ZB-1p"),
        Figure(f"zb-2p {size}", "", two_p, row.two_p, bar=1.0, relative=True, setting="peer: the paper's ZB-2p"),
        Figure(f"auto at p, {size}", "", auto, one_p, bar=0.999, relative=True, setting="peer: zb-1p"),
        Figure(
            f"memory for ZB-2p's bubble, {size}",
            "p",
            least,
            2.0,
            bar=1.0,
            relative=True,
            setting="the least limit, in steps of p/8, with which auto reaches the paper's ZB-2p, which has 2p",
        ),
    ]


def _bubble(row: Row, name: str, memory_limit: float | None, effort: Effort | None = None) -> float:
    program = pipert.schedules.build(
        name,
        num_ranks=row.num_ranks,
        num_microbatches=row.num_microbatches,
        costs=row.costs,
        memory_limit=memory_limit,
        effort=effort,
    )
    return pipert.simulate(pipert.compile(program), row.costs).bubble_rate_span


def _least_share(row: Row) -> float:
    """Bisect for the least limit, as a multiple of p; a search ends when it has reached the paper's bubble."""
    enough = row.num_microbatches * (row.F + row.I + row.W) / (1 - row.two_p)

    def reaches(eighths: int) -> bool:
        best = float("inf")

        def progress(figure: float, share: float) -> None:
            nonlocal best
            best = min(best, figure)

        effort = Effort(progress=progress, should_stop=lambda: best <= enough)
        return round(_bubble(row, "auto", row.num_ranks * eighths / 8, effort), 4) <= row.two_p

    too_little, suffices = 7, 16
    while suffices - too_little > 1:
        middle = (too_little + suffices) // 2
        if reaches(middle):
            suffices = middle
        else:
            too_little = middle
    return suffices / 8


PARTS: dict[str, Callable[[], list[Figure]]] = {
    f"{row.num_ranks}_x_{row.num_microbatches}": functools.partial(measure, row) for row in ROWS
}
