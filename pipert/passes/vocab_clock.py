"""The clock on which a program finds the places of its passes over the vocabulary.

Every rank keeps the order of what it does for its stages, and starts a pass over the vocabulary when its input is
there. What nobody waits for (T in Algorithm 2, the embedding's gradient, weight gradients) fills the time in which a
rank would wait, or goes before what would need its memory.

An op starts on the clock once its inputs are there, so the order on the clock is one in which everything can run,
whatever it takes: what is made of it cannot wait in a circle.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipert.activation import Room
from pipert.costs import Costs
from pipert.ir import Op, Program
from pipert.ir.replay import Value, makes, needs
from pipert.ops import OpKind

_ROUNDING = 1e-9
_AHEAD = 2
"""So many microbatches are looked up in the embedding before stage 0 starts the first of them."""
_RECV_DEPTH = 2
"""So many messages of one edge may have arrived and not been used: as many as lowering allows where nothing is said."""
_MOST_HELD = 2
"""So many microbatches of a rank may be between S and T, or wait for the embedding's gradient."""
_STARTS_BACKWARD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)
_PLACED = (OpKind.EMBED, OpKind.SCORE, OpKind.SCORE_W, OpKind.EMBED_W, OpKind.WEIGHT_GRAD)
_AFTER = {OpKind.VBCAST: OpKind.SCORE, OpKind.VSTATS: OpKind.SCORE_W, OpKind.VEMBED_GRAD: OpKind.EMBED_W}
"""What can start on every rank after a meeting."""
_BEFORE = {OpKind.EMBED: OpKind.VEMBED, OpKind.SCORE: OpKind.VSTATS, OpKind.SCORE_W: OpKind.VGRAD}
"""The meeting to which all ranks bring what they do (T to VGRAD in Algorithm 1 only)."""

Edge = tuple[int, int]
"""Source and destination."""

Token = Value | Op
"""What ops wait for: what a stage made of a microbatch, or the end of a meeting."""


@dataclass(slots=True)
class TimedOp:
    """An op that ran. Starts and ends are numbered over all ranks: a cause has a lower number than its effect."""

    op: Op
    started: int
    ended: int = -1


@dataclass(slots=True)
class TimedMeeting:
    """A meeting that took place, and what ran before it on the ranks that brought something: rank → op."""

    op: Op
    brought: dict[int, TimedOp] = field(default_factory=dict)


class VocabClock:
    """Runs one step of a program with its passes over the vocabulary.

    Args:
        program: what the ranks do for their stages.
        algorithm: 1 or 2.
        costs: with those of the vocabulary.
        rooms: if given, weight gradients leave their places: they fill, and make room.
        overrun: how much of what fills, from 0 to 1, may be left to do when its rank's next op gets ready.
        embedding: whether the input embedding is split, too.

    Attributes:
        rows: per rank, what ran.
        meetings: in order.
        makespan: the time that it took.
    """

    def __init__(
        self,
        program: Program,
        algorithm: int,
        costs: Costs,
        rooms: Sequence[Room] = (),
        overrun: float = 0.0,
        *,
        embedding: bool = True,
    ) -> None:
        self._embedding = embedding
        self._program, self._algorithm, self._costs, self._rooms = program, algorithm, costs, rooms
        self._vocab = costs.known_vocab
        self._stages = costs.for_plan(program)
        self._overrun = overrun
        self._trains = any(
            part.kind is not OpKind.FORWARD for row in program.ranks for op in row for part in op.unpacked
        )
        self._entry, self._exit = program.rank_of(0, 0), program.rank_of(program.num_stages - 1, 0)
        self.rows: list[list[TimedOp]] = [[] for _ in program.ranks]
        self.meetings: list[TimedMeeting] = []
        self.makespan = 0.0
        self._todo = [deque(op for op in row if not (rooms and op.kind is OpKind.WEIGHT_GRAD)) for row in program.ranks]
        self._waiting = [{kind: deque[Op]() for kind in _PLACED} for _ in program.ranks]  # what could start
        entering = [part.microbatch for op in program.ranks[self._entry] for part in op.unpacked if _enters(part)]
        for rank, waiting in enumerate(self._waiting if embedding else ()):
            waiting[OpKind.EMBED] += (Op(OpKind.EMBED, rank, microbatch) for microbatch in entering)
        self._num_held = [0] * program.num_ranks
        self._num_entered = 0
        self._is_free = [True] * program.num_ranks
        self._here: list[set[Token]] = [set() for _ in program.ranks]
        self._here_at: list[dict[Token, float]] = [{} for _ in program.ranks]  # of what is on its way, too
        self._made: defaultdict[Edge, deque[Value]] = defaultdict(deque)  # what has not left its rank
        self._num_unused: Counter[Edge] = Counter()  # of what has
        self._open: dict[Op, TimedMeeting] = {}  # to which not all have brought their part
        self._lane: deque[TimedMeeting] = deque()  # what takes place, and what waits for it
        self._now = 0.0
        self._number = 0  # of starts and ends
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._look_at = set(range(program.num_ranks))

    def run(self) -> bool:
        """Run as far as it gets; whether that is the end."""
        while True:
            while self._look_at:
                ranks, self._look_at = sorted(self._look_at), set()
                for rank in ranks:
                    op = self._next(rank) if self._is_free[rank] else None
                    if op is not None:
                        self._start(rank, op)
                self._happen()
            if not self._events:
                break
            self._now = self._events[0][0]
            self._happen()
        self.makespan = self._now
        return not any(self._todo) and not any(any(waiting.values()) for waiting in self._waiting)

    # Time.

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, self._num_events, event))
        self._num_events += 1

    def _happen(self) -> None:
        """Let happen what happens now."""
        while self._events and self._events[0][0] <= self._now * (1 + _ROUNDING):
            heapq.heappop(self._events)[2]()

    def _count(self) -> int:
        self._number += 1
        return self._number

    # Ops.

    def _start(self, rank: int, op: Op) -> None:
        timed = TimedOp(op, self._count())
        self.rows[rank].append(timed)
        self._is_free[rank] = False
        for room in self._rooms:
            room.take(rank, op)
        self._num_held[rank] += op.kind is OpKind.SCORE
        if any(map(_enters, op.unpacked)):
            self._num_entered += 1
            self._look_at.update(range(self._program.num_ranks))
        end = self._now + self._time(rank, op)
        self._at(end, lambda: self._end(rank, timed))
        for value in self._makes(op):
            for user in self._users(value):
                self._here_at[user][value] = end + (self._delay((rank, user)) if user != rank else 0.0)

    def _end(self, rank: int, timed: TimedOp) -> None:
        timed.ended = self._count()
        op = timed.op
        self._is_free[rank] = True
        self._look_at.add(rank)
        for value in self._makes(op):
            for user in self._users(value):
                if user == rank:
                    self._here[rank].add(value)
                else:
                    self._made[rank, user].append(value)
                    self._transfer((rank, user))
        for _, stage, microbatch in needs(op, self._program.num_stages):
            source = self._program.rank_of(stage, microbatch)
            if source != rank:
                self._num_unused[source, rank] -= 1
                self._transfer((source, rank))
        self._num_held[rank] -= op.kind is OpKind.SCORE_W
        if self._rooms:
            gradients = (part for part in op.unpacked if part.kind is OpKind.INPUT_GRAD)
            weights = (Op(OpKind.WEIGHT_GRAD, part.stage, part.microbatch) for part in gradients)
            self._waiting[rank][OpKind.WEIGHT_GRAD] += weights
        for meeting in self._meetings_after(op):
            self._bring(meeting, rank, timed)

    def _makes(self, op: Op) -> list[Value]:
        """List what an op makes, in order."""
        return [value for part in op.unpacked for value in makes(part)]

    def _users(self, value: Value) -> Iterator[int]:
        """List the ranks that wait for what a stage makes."""
        is_grad, stage, microbatch = value
        if not is_grad:
            yield self._program.rank_of(stage, microbatch)
        neighbour = stage - 1 if is_grad else stage + 1
        if 0 <= neighbour < self._program.num_stages:
            yield self._program.rank_of(neighbour, microbatch)

    def _transfer(self, edge: Edge) -> None:
        """Let what was made leave its rank, in order, as far as there is room for it where it goes."""
        while self._made[edge] and self._num_unused[edge] < _RECV_DEPTH:
            value = self._made[edge].popleft()
            self._num_unused[edge] += 1
            self._here_at[edge[1]][value] = self._now + self._delay(edge)
            self._at(self._now + self._delay(edge), functools.partial(self._arrive, edge[1], value))

    def _arrive(self, rank: int, value: Value) -> None:
        self._here[rank].add(value)
        self._look_at.add(rank)

    def _delay(self, edge: Edge) -> float:
        return sum(self._costs.transfer(*edge))

    def _time(self, rank: int, op: Op) -> float:
        return self._costs.op_time(op, rank, self._stages)

    # Choices.

    def _next(self, rank: int) -> Op | None:
        """Choose what a free rank starts now, and take it from where it waits."""
        return self._take_urgent(rank) or self._take_in_order(rank) or self._take_filler(rank)

    def _take_urgent(self, rank: int) -> Op | None:
        """Take what goes before all else: what other ranks wait for, and what would hold too much memory."""
        waiting, has_room = self._waiting[rank], not self._trains or self._num_held[rank] < _MOST_HELD
        embeds, scores, weights, gradients = (waiting[kind] for kind in _PLACED[:4])
        num_embedded = self._program.num_microbatches - len(embeds)
        if embeds and num_embedded < self._num_entered + _AHEAD:
            return embeds.popleft()
        if weights and (self._algorithm == 1 or (scores and not has_room)):
            return weights.popleft()
        if len(gradients) >= _MOST_HELD:
            return gradients.popleft()
        return scores.popleft() if scores and has_room else None

    def _take_in_order(self, rank: int) -> Op | None:
        """Take the next op of the rank's stages if it can run, or what makes room for it."""
        todo, weights = self._todo[rank], self._waiting[rank][OpKind.WEIGHT_GRAD]
        if not todo or not self._needs(todo[0]) <= self._here[rank]:
            return None
        if weights and not all(room.is_there(rank, todo[0]) for room in self._rooms):
            return weights.popleft()
        return todo.popleft()

    def _take_filler(self, rank: int) -> Op | None:
        """Take what nobody waits for, if it is over, but for an overrun, before the rank's next op can start."""
        todo, ready = self._todo[rank], math.inf
        if todo:
            ready = max(self._here_at[rank].get(token, math.inf) for token in self._needs(todo[0]))
        for kind in (OpKind.SCORE_W, OpKind.WEIGHT_GRAD, OpKind.EMBED_W):
            fillers = self._waiting[rank][kind]
            if fillers:
                end = self._now + self._time(rank, fillers[0]) * (1 - self._overrun)
                return fillers.popleft() if end <= ready * (1 + _ROUNDING) else None
        return None

    def _needs(self, op: Op) -> set[Token]:
        needed: set[Token] = {*needs(op, self._program.num_stages)}
        for part in op.unpacked:
            if self._embedding and _enters(part):
                needed.add(Op(OpKind.VEMBED, -1, part.microbatch))
            if part.kind in _STARTS_BACKWARD and part.stage == self._program.num_stages - 1:
                needed.add(Op(OpKind.VGRAD, -1, part.microbatch))
        return needed

    # Meetings.

    def _meetings_after(self, op: Op) -> Iterator[Op]:
        """List the meetings to which an op brings something."""
        for part in op.unpacked:
            if part.kind is OpKind.FORWARD and part.stage == self._program.num_stages - 1:
                yield Op(OpKind.VBCAST, -1, part.microbatch)
            if self._embedding and part.kind in _STARTS_BACKWARD and part.stage == 0:
                yield Op(OpKind.VEMBED_GRAD, -1, part.microbatch)
        meeting = _BEFORE.get(op.kind)
        if meeting is not None and not (meeting is OpKind.VGRAD and self._algorithm == 2):
            yield Op(meeting, -1, op.microbatch)

    def _bring(self, meeting: Op, rank: int, timed: TimedOp) -> None:
        """Bring a rank's part to a meeting, which waits for that of one rank or of all."""
        met = self._open.setdefault(meeting, TimedMeeting(meeting))
        met.brought[rank] = timed
        from_one = meeting.kind in (OpKind.VBCAST, OpKind.VEMBED_GRAD)
        if len(met.brought) == (1 if from_one else self._program.num_ranks):
            del self._open[meeting]
            self._meet(met)
            if meeting.kind is OpKind.VSTATS and self._trains and self._algorithm == 2:
                self._meet(TimedMeeting(Op(OpKind.VGRAD, -1, meeting.microbatch)))

    def _meet(self, met: TimedMeeting) -> None:
        self.meetings.append(met)
        self._lane.append(met)
        if len(self._lane) == 1:
            self._start_meeting()

    def _start_meeting(self) -> None:
        op = self._lane[0].op
        time = self._now + self._vocab.time_of(op.kind)
        for rank in self._readers(op):
            self._here_at[rank][op] = time
        self._at(time, lambda: self._end_meeting(op))

    def _end_meeting(self, op: Op) -> None:
        self._count()
        self._lane.popleft()
        for rank in self._readers(op):
            self._here[rank].add(op)
            self._look_at.add(rank)
            kind = _AFTER.get(op.kind)
            if kind is not None and (self._trains or kind is OpKind.SCORE):
                self._waiting[rank][kind].append(Op(kind, rank, op.microbatch))
        if self._lane:
            self._start_meeting()

    def _readers(self, meeting: Op) -> Sequence[int]:
        """List the ranks that use what a meeting ends with."""
        of_one = {OpKind.VEMBED: self._entry, OpKind.VGRAD: self._exit}
        return (of_one[meeting.kind],) if meeting.kind in of_one else range(self._program.num_ranks)


def _enters(part: Op) -> bool:
    """Whether a microbatch begins with an op."""
    return part.kind is OpKind.FORWARD and part.stage == 0
