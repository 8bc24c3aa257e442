"""Judges of programs and plans that try every interleaving, and share no code with the lowering and the verifier."""

from pipert.ir import Op
from pipert.ops import LaneKind, OpKind, Scope

BACKWARD = (OpKind.BACKWARD, OpKind.INPUT_GRAD)


def reachable(start, successors):
    """Every state that can be reached from ``start``."""
    seen, todo = {start}, [start]
    while todo:
        for state in successors(todo.pop()):
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return seen


def program_can_get_stuck(program, recv_depth):
    """Whether some interleaving of a program ends early, where a send ends only when its receive is posted, an edge
    carries its messages in the order in which they are made, and a rank posts ``recv_depth`` receives of an edge ahead.
    """
    order = [[part for op in ops for part in op.unpacked] for ops in program.ranks]
    edges = sorted({(a, b) for a in range(program.num_ranks) for b in range(program.num_ranks) if a != b})
    messages = {edge: [] for edge in edges}
    for source, ops in enumerate(order):
        for op in ops:
            step = 1 if op.kind is OpKind.FORWARD else -1 if op.kind in BACKWARD else 0
            path = program.paths[program.path_of[op.microbatch]]
            if step and 0 <= op.stage + step < len(path) and path[op.stage + step] != source:
                messages[source, path[op.stage + step]].append((op, step, op.stage + step, op.microbatch))

    def read_by(op, message):
        _, step, stage, microbatch = message
        same = (op.stage, op.microbatch) == (stage, microbatch)
        return same and (op.kind is OpKind.FORWARD if step == 1 else op.kind in BACKWARD)

    def successors(state):
        computed, sent = state
        for r, ops in enumerate(order):
            if computed[r] < len(ops):
                op = ops[computed[r]]
                missing = [
                    message
                    for e, edge in enumerate(edges)
                    if edge[1] == r
                    for message in messages[edge][sent[e] :]
                    if read_by(op, message)
                ]
                if not missing:
                    yield (*computed[:r], computed[r] + 1, *computed[r + 1 :]), sent
        for e, (source, target) in enumerate(edges):
            if sent[e] == len(messages[source, target]):
                continue
            made = messages[source, target][sent[e]][0] in order[source][: computed[source]]
            unread = [
                message
                for message in messages[source, target][: sent[e]]
                if not any(read_by(op, message) for op in order[target][: computed[target]])
            ]
            if made and len(unread) < recv_depth:
                yield computed, (*sent[:e], sent[e] + 1, *sent[e + 1 :])

    end = tuple(map(len, order)), tuple(len(messages[edge]) for edge in edges)
    states = reachable(((0,) * len(order), (0,) * len(edges)), successors)
    return any(state != end and not list(successors(state)) for state in states)


class PlanSearch:
    """Every interleaving of a plan's rows, which run in order on queues: its lanes, or its ranks."""

    def __init__(self, columns, queue_of):
        """``columns`` is a plan object as in a plan file; ``queue_of(lane)`` names the queue of a lane."""
        ops, lanes = columns["ops"], columns["lanes"]
        self.num_ops = len(ops["text"])
        self.deps = [ops["deps"][a:b] for a, b in zip(ops["dep_offsets"], ops["dep_offsets"][1:], strict=False)]
        self.is_send = [lanes["kind"][lane] == LaneKind.SEND.value for lane in ops["lane"]]
        self.is_recv = [lanes["kind"][lane] == LaneKind.RECV.value for lane in ops["lane"]]
        # What all ranks do at once: of each such op, all of them.
        meets = [Op.parse(text).kind.scope is Scope.MEETING for text in ops["text"]]
        texts = ops["text"]
        self.together = {
            op: tuple(other for other in range(self.num_ops) if texts[other] == texts[op])
            for op in range(self.num_ops)
            if meets[op]
        }
        queues = {}
        for op, lane in enumerate(ops["lane"]):
            queues.setdefault(queue_of(lane), []).append(op)
        self.queues = list(queues.values())
        self.place = {op: (q, i) for q, queue in enumerate(self.queues) for i, op in enumerate(queue)}
        self.start = (0,) * len(self.queues)
        self.end = tuple(map(len, self.queues))

    def done(self, state, op):
        queue, position = self.place[op]
        return state[queue] > position

    def may_run(self, state, op):
        """Whether an op is the next of its queue and its dependencies are over; the other end of it aside."""
        queue, position = self.place[op]
        return state[queue] == position and all(self.done(state, dep) for dep in self.deps[op])

    def steps(self, state):
        """The ops, or pairs of ops, that may run next."""
        for op in range(self.num_ops):
            if self.is_send[op]:
                if self.may_run(state, op) and self.may_run(state, op + 1):
                    yield (op, op + 1)
            elif op in self.together:
                if op == self.together[op][0] and all(self.may_run(state, other) for other in self.together[op]):
                    yield self.together[op]
            elif not self.is_recv[op] and self.may_run(state, op):
                yield (op,)

    def after(self, state, step):
        ran = [self.place[op][0] for op in step]
        return tuple(position + ran.count(queue) for queue, position in enumerate(state))

    def states(self):
        return reachable(self.start, lambda state: [self.after(state, step) for step in self.steps(state)])

    def can_get_stuck(self):
        return any(state != self.end and not any(self.steps(state)) for state in self.states())


def plan_can_get_stuck(columns, *, one_queue_per_rank):
    """Whether some interleaving of a plan's rows ends early."""
    ranks = columns["lanes"]["rank"]
    return PlanSearch(
        columns, (lambda lane: ranks[lane]) if one_queue_per_rank else (lambda lane: lane)
    ).can_get_stuck()


def plan_can_go_wrong(columns):
    """Whether some interleaving of a plan's lanes runs an op too early: before what it reads is there, before its slot
    is free, before its edge's window has room, or in another order than that of the ops that make the edge's messages.

    For plans without overlapped pairs. Where the vocabulary is split, ``columns["algorithm"]`` says by which one.
    """
    search = PlanSearch(columns, lambda lane: lane)
    ops = [Op.parse(text) for text in columns["ops"]["text"]]
    ranks = columns["lanes"]["rank"]
    row = {}
    for i, op in enumerate(ops):
        at = ranks[columns["ops"]["lane"][i]] if op.kind.scope is Scope.MEETING else op.stage
        row[op.kind, at, op.microbatch] = i
    path = columns["paths"][0]
    grad_row = {(op.stage, op.microbatch): i for i, op in enumerate(ops) if op.kind in BACKWARD}
    lane_of, slot_of = columns["ops"]["lane"], columns["ops"]["slot"]

    def reads(i):
        op, at = ops[i], (ops[i].stage, ops[i].microbatch)
        yield from vocabulary_reads(i)
        if op.kind is OpKind.FORWARD:
            yield from (row[key] for key in [(OpKind.RECV_F, *at)] if key in row)
            if op.stage > 0 and (OpKind.RECV_F, *at) not in row:
                yield row[OpKind.FORWARD, op.stage - 1, op.microbatch]
        elif op.kind in BACKWARD:
            yield row[(OpKind.FORWARD, *at)]
            yield from (row[key] for key in [(OpKind.RECV_B, *at), (OpKind.RECOMPUTE, *at)] if key in row)
            if (OpKind.RECV_B, *at) not in row and (op.stage + 1, op.microbatch) in grad_row:
                yield grad_row[op.stage + 1, op.microbatch]
        elif op.kind is OpKind.WEIGHT_GRAD:
            yield row[(OpKind.INPUT_GRAD, *at)]
        elif op.kind in (OpKind.SEND_F, OpKind.RECOMPUTE):
            yield row[(OpKind.FORWARD, *at)]
        elif op.kind is OpKind.SEND_B:
            yield grad_row[at]

    def vocabulary_reads(i):
        op, rank = ops[i], ranks[lane_of[i]]
        wanted = {
            OpKind.VEMBED: [OpKind.EMBED],
            OpKind.SCORE: [OpKind.VBCAST],
            OpKind.VSTATS: [OpKind.SCORE],
            OpKind.SCORE_W: [OpKind.VSTATS],
            OpKind.VGRAD: [OpKind.VSTATS, OpKind.SCORE_W] if columns.get("algorithm") == 1 else [OpKind.VSTATS],
            OpKind.EMBED_W: [OpKind.VEMBED_GRAD],
        }.get(op.kind, [])
        last = len(path) - 1
        if op.kind is OpKind.FORWARD and op.stage == 0:
            wanted = [OpKind.VEMBED]
        if op.kind in BACKWARD and op.stage == last:
            wanted = [OpKind.VGRAD]
        yield from (row[kind, rank, op.microbatch] for kind in wanted if (kind, rank, op.microbatch) in row)
        if op.kind is OpKind.VBCAST and rank == path[last]:
            yield row[OpKind.FORWARD, last, op.microbatch]
        if op.kind is OpKind.VEMBED_GRAD and rank == path[0]:
            yield grad_row[0, op.microbatch]

    def reader(i):
        at = (ops[i].stage, ops[i].microbatch)
        return row[(OpKind.FORWARD, *at)] if ops[i].kind is OpKind.RECV_F else grad_row[at]

    def users(i):
        """All that must be over before the slot of receive ``i`` is free."""
        last = (OpKind.FORWARD, OpKind.SEND_F) if not grad_row else (OpKind.SEND_B, OpKind.WEIGHT_GRAD, OpKind.BACKWARD)
        at = (ops[i].stage, ops[i].microbatch)
        return [row[(kind, *at)] for kind in last if (kind, *at) in row]

    def too_early(state, i):
        if not all(search.done(state, needed) for needed in reads(i)):
            return True
        if not search.is_recv[i]:
            return False
        earlier = [j for j in range(len(ops)) if search.is_recv[j] and search.done(state, j)]
        unread = [j for j in earlier if lane_of[j] == lane_of[i] and not search.done(state, reader(j))]
        in_use = [j for j in earlier if slot_of[j] == slot_of[i] and not all(search.done(state, u) for u in users(j))]
        return len(unread) >= columns["recv_depth"] or bool(in_use)

    sends = [i for i in range(len(ops)) if search.is_send[i]]
    makers = [(lane_of[i], max(reads(i))) for i in sends]
    if sorted(makers, key=lambda pair: pair[0]) != sorted(makers):
        return True
    return any(too_early(state, i) for state in search.states() for step in search.steps(state) for i in step)
