"""Drives ``_core.Executor`` over a plan with handlers that compute nothing, but check every byte they are given."""

import ctypes
import multiprocessing
import os
import traceback
import uuid

from pipert import _core
from pipert.ops import LaneKind


def payload(text, step, nbytes):
    """What the SEND with this text sends in this step: bytes that tell both."""
    unit = f"{text}@{step};".encode()
    return (unit * (nbytes // len(unit) + 1))[:nbytes]


class Driver:
    """Handlers for the ranks' compute and collective ops; ``nbytes(text, step)`` is how much a SEND sends.

    ``before[text]`` is called by the handler of that op; a SEND in ``silent`` is not posted.
    """

    def __init__(self, plan, channels, ranks, *, nbytes=lambda text, step: 100, spin_us=0, timeout_ms=10_000):
        self.plan = plan
        self.channels = channels
        self.executor = _core.Executor(plan.native, channels, list(ranks), spin_us=spin_us, timeout_ms=timeout_ms)
        self.nbytes = nbytes
        self.before = {}
        self.silent = set()
        self.calls = []
        self.finished_sends = {}
        self._sent = {}
        self._step = -1
        lanes = [plan.lanes[lane] for lane in plan.op_lane]
        ours = (LaneKind.COMPUTE, LaneKind.COLLECTIVE)
        self.rows = [row for row, lane in enumerate(lanes) if lane.kind in ours and lane.rank in set(ranks)]
        self.sends = {row: [] for row in self.rows}
        self.reads = {row: [] for row in self.rows}
        for row, lane in enumerate(lanes):
            for dep in plan.deps[plan.dep_offsets[row] : plan.dep_offsets[row + 1]]:
                if lane.kind is LaneKind.SEND and dep in self.sends:
                    self.sends[dep].append(row)
                if lane.kind in ours and row in self.reads and lanes[dep].kind is LaneKind.RECV:
                    self.reads[row].append(dep)
        self.executor.bind([self._handler(row) for row in self.rows])

    def row(self, text):
        return self.plan.op_text.index(text)

    def close(self):
        self.executor.close()
        self.channels.close()

    def step(self, step):
        self._step = step
        self.calls = []
        self.executor.step(step)

    def _handler(self, row):
        text = self.plan.op_text[row]

        def handler(microbatch):
            self.calls.append((text, microbatch))
            for recv in self.reads[row]:
                self._check(recv)
            if text in self.before:
                self.before[text]()
            for send in self.sends[row]:
                if self.plan.op_text[send] not in self.silent:
                    self._post(send)

        return handler

    def _post(self, send):
        text = self.plan.op_text[send]
        data = payload(text, self._step, self.nbytes(text, self._step))
        half = len(data) // 128 * 64  # two segments; the first ends where the second is aligned
        parts = [
            ctypes.create_string_buffer(data[:half], half),
            ctypes.create_string_buffer(data[half:], len(data) - half),
        ]
        self._sent[send] = parts  # the memory stays until the op is posted again, a step later
        segments = [(ctypes.addressof(part), len(part)) for part in parts]
        self.finished_sends[text] = self.executor.post(send, segments, text.encode())

    def _check(self, recv):
        text = self.plan.op_text[recv - 1]  # a RECV stands right behind its SEND
        expected = payload(text, self._step, self.nbytes(text, self._step))
        header, address, nbytes = self.executor.received(recv)
        assert header == text.encode()
        assert ctypes.string_at(address, nbytes) == expected
        memory = self.executor.slot_memory(recv)
        assert bytes(memory[:nbytes]) == expected


def _child(body, rank, session, pipe):
    try:
        pipe.send(("value", body(rank, session)))
    except BaseException as error:
        pipe.send(("error", (type(error), error, traceback.format_exc())))
    finally:
        pipe.close()


class Ranks:
    """Forked processes that run ``body(rank, session)``; their results or exceptions come back by rank."""

    def __init__(self, num_ranks, body, session=None):
        context = multiprocessing.get_context("fork")
        self.session = session or uuid.uuid4().hex
        self.processes, self._pipes = [], []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(body, rank, self.session, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)

    def pid(self, rank):
        return self.processes[rank].pid

    def close_pipe(self, rank):
        """Expects nothing from this rank any more."""
        self._pipes[rank].close()

    def results(self, timeout=60):
        """Per rank: its value, or the exception that it ended with, or None if it was killed."""
        answers = []
        for pipe, process in zip(self._pipes, self.processes, strict=True):
            answer = None
            try:
                if not pipe.closed and pipe.poll(timeout):
                    kind, value = pipe.recv()
                    answer = value if kind == "value" else value[1]
            except EOFError:
                pass
            process.join(timeout)
            if process.is_alive():
                os.kill(process.pid, 9)
                raise AssertionError("a rank did not end")
            answers.append(answer)
        return answers
