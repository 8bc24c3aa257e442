"""Plans with one edge reordered: the verdict is that of a search through every state of rendezvous transfers.

By default a sample; with ``PIPERT_ALL_REORDERINGS=1`` (as ``make bars`` sets it) every schedule, edge and pair of
neighbours on it, for 2 to 4 ranks and 1 to 4 microbatches.
"""

from __future__ import annotations

import itertools
import os
import random
import re

import pytest
from deadlock_search import reachable

import pipert
from pipert import PipertError, schedules
from pipert.lowering.lowered_csv import plan_from_csv, plan_to_csv
from pipert.lowering.mend import accepts

ALL = os.environ.get("PIPERT_ALL_REORDERINGS", "") not in ("", "0")
SAMPLE = 30
"""How many reorderings of each schedule and size are tried, if not all."""

OP = re.compile(r"(\d+)(SEND_F|RECV_F|SEND_B|RECV_B|F|B|I|W)(\d+)")


class Rows:
    """The rows of a lowered schedule as texts, and what each cell needs of its own row."""

    def __init__(self, rows):
        self.rows = rows
        self.parts = [[[(int(s), kind, int(mb)) for s, kind, mb in OP.findall(text)] for text in row] for row in rows]
        self.rank_of = {
            (stage, mb): rank
            for rank, row in enumerate(self.parts)
            for cell in row
            for stage, kind, mb in cell
            if len(kind) == 1
        }
        self.last_stage = max(stage for stage, _ in self.rank_of)

    def other_end(self, part):
        stage, kind, mb = part
        return {
            "SEND_F": (stage + 1, "RECV_F", mb),
            "RECV_F": (stage - 1, "SEND_F", mb),
            "SEND_B": (stage - 1, "RECV_B", mb),
            "RECV_B": (stage + 1, "SEND_B", mb),
        }.get(kind)

    def can_get_stuck(self):
        """Whether ranks that run their rows in order, each one op at a time, can come to a halt before their ends.

        A transfer is one step of both its ranks; every other step of a rank can take nothing away from another, so it
        is taken at once.
        """
        heads = [[cell[0] if "_" in cell[0][1] else None for cell in row] for row in self.parts]  # None: no transfer

        def skip_local(state):
            return tuple(
                next((i for i in range(position, len(row)) if row[i] is not None), len(row))
                for position, row in zip(state, heads, strict=True)
            )

        def successors(state):
            waiting = {
                row[position]: rank
                for rank, (position, row) in enumerate(zip(state, heads, strict=True))
                if position < len(row)
            }
            for part, rank in waiting.items():
                partner = waiting.get(self.other_end(part))
                if partner is not None and rank < partner:
                    yield skip_local(tuple(p + (r in (rank, partner)) for r, p in enumerate(state)))

        start = skip_local((0,) * len(heads))
        end = tuple(map(len, heads))
        return any(state != end and not list(successors(state)) for state in reachable(start, successors))

    def goes_wrong(self):
        """Whether a row computes before it has received, sends before it has computed, or sends in another order."""
        for rank, row in enumerate(self.parts):
            made, arrived, sent = [], set(), {}
            for cell in row:
                for stage, kind, mb in cell:
                    step = {"F": 1, "B": -1, "I": -1}.get(kind)
                    if kind.startswith("RECV"):
                        arrived.add((kind[-1], stage, mb))
                    elif kind.startswith("SEND"):
                        target = self.rank_of[stage + (1 if kind[-1] == "F" else -1), mb]
                        if (kind[-1], stage, mb) not in made:
                            return True
                        sent.setdefault(target, []).append(made.index((kind[-1], stage, mb)))
                    elif step is not None:
                        letter, source = ("F" if step == 1 else "B"), stage - step
                        if (
                            0 <= source <= self.last_stage
                            and self.rank_of[source, mb] != rank
                            and (letter, stage, mb) not in arrived
                        ):
                            return True
                        made.append((letter, stage, mb))
            if any(order != sorted(order) for order in sent.values()):
                return True
        return False


def reorderings(rows):
    """Two neighbours of one edge swapped, where they are sent, where they are received, or at both ends."""
    base = Rows(rows)
    for source in range(len(rows)):
        for target in range(len(rows)):
            sends = [
                i
                for i, cell in enumerate(base.parts[source])
                if cell[0][1].startswith("SEND") and base.rank_of[base.other_end(cell[0])[0], cell[0][2]] == target
            ]
            for first, second in itertools.pairwise(sends):
                for where in ("sent", "received", "both"):
                    changed = [list(row) for row in rows]
                    if where != "received":
                        swap(changed[source], first, second)
                    if where != "sent":
                        swap(
                            changed[target],
                            *(
                                base.parts[target].index([base.other_end(base.parts[source][i][0])])
                                for i in (first, second)
                            ),
                        )
                    yield changed


def swap(row, i, j):
    row[i], row[j] = row[j], row[i]


def neighbours(rows):
    """Any two neighbours of a row swapped, one of them a transfer."""
    for rank, row in enumerate(rows):
        for i in range(len(row) - 1):
            if "_" in (row[i] + row[i + 1]).replace("OVERLAP_F_B", ""):
                changed = [list(other) for other in rows]
                swap(changed[rank], i, i + 1)
                yield changed


def programs(name):
    for num_ranks in (2, 3, 4):
        for num_microbatches in (1, 2, 3, 4):
            try:
                yield schedules.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
            except PipertError:
                continue  # a size that the schedule refuses


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in schedules.names() if not schedules.SCHEDULES[name].from_costs])
def test_the_verdict_on_one_reordered_edge_is_that_of_every_interleaving(name):
    rng = random.Random(name)
    verdicts = {True: 0, False: 0}
    for program in programs(name):
        rows = [line.split(",") for line in plan_to_csv(pipert.compile(program)).split()]
        assert not Rows(rows).can_get_stuck()
        assert not Rows(rows).goes_wrong()
        cases = [*reorderings(rows), *neighbours(rows)]
        for changed in cases if ALL else rng.sample(cases, min(SAMPLE, len(cases))):
            judge = Rows(changed)
            may_run = not judge.goes_wrong() and not judge.can_get_stuck()
            verdicts[may_run] += 1
            text = "\n".join(map(",".join, changed))
            assert accepts(lambda text=text: plan_from_csv(text)) == may_run, text
    assert min(verdicts.values()) > 0
