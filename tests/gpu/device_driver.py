"""Drives ``_core.StreamExecutor`` over a plan with handlers that check every word they receive, under random delays.

A handler holds the compute stream up before it looks at what it has received, so that a slot which is offered too
early is overwritten under its eyes; and again before it makes what it sends, so that a copy which does not wait takes
what was there before.
"""

import random

import torch

from pipert import _core
from pipert.ops import LaneKind

STALE = -1


class DeviceDriver:
    """All ranks of a plan in this process.

    ``hold_up()`` delays what is enqueued on the compute stream from now on; messages have up to ``max_words`` words.
    """

    def __init__(self, plan, device, hold_up, *, transport="local", max_words=1 << 20, seed=0, timeout_ms=20_000):
        self.plan = plan
        self.device = device
        self.hold_up = hold_up
        self.max_words = max_words
        self.random = random.Random(seed)
        self.slots = {}
        self.sent = {}
        self.num_words = {}
        self.step_number = -1
        self.num_wrong = torch.zeros((), dtype=torch.int64, device=device.torch_device)
        self.host = _core.Channels.local(plan.native, True)
        channels = _core.DeviceChannels(self.host, transport, device.index, timeout_ms)
        ranks = list(range(plan.num_ranks))
        self.executor = _core.StreamExecutor(plan.native, channels, ranks, self._allocate, timeout_ms, True)
        self._read_plan()
        self.executor.bind([self._handler(op) for op in self.compute_ops])

    def step(self, step):
        self.step_number = step
        self.executor.step(step, self.device.current_stream())

    def close(self):
        self.executor.close()
        self.host.close()

    def _read_plan(self):
        plan = self.plan
        lanes = [plan.lanes[lane].kind for lane in plan.op_lane]
        self.compute_ops = [op for op in range(plan.num_ops) if lanes[op] in (LaneKind.COMPUTE, LaneKind.COLLECTIVE)]
        self.sends = {op: [] for op in self.compute_ops}
        self.reads = {op: [] for op in self.compute_ops}
        for op, lane in enumerate(lanes):
            for dependency in plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]]:
                if lane is LaneKind.SEND and dependency in self.sends:
                    self.sends[dependency].append(op)
                elif op in self.reads and lanes[dependency] is LaneKind.RECV:
                    self.reads[op].append(dependency)

    def _allocate(self, slot, num_bytes):
        self.slots[slot] = self.device.empty(num_bytes)
        self.slots[slot].fill_(STALE & 0xFF)
        return self.slots[slot].data_ptr()

    def _handler(self, op):
        def handler(_):
            self.hold_up()
            for recv in self.reads[op]:
                self._check(recv)
            for send in self.sends[op]:
                self._post(send)

        return handler

    def _word(self, send):
        return send * 1_000_003 + self.step_number

    def _post(self, send):
        num_words = self.num_words[send] = self.random.randint(1, self.max_words)
        words = torch.full((num_words,), STALE, dtype=torch.int64, device=self.device.torch_device)
        self.hold_up()
        words.fill_(self._word(send))
        self.sent[send] = words  # lives until the op is posted again, a step later
        self.executor.post(send, [(words.data_ptr(), words.nbytes)], str(send).encode())

    def _check(self, recv):
        send = recv - 1  # a RECV stands right behind its SEND
        header, address, num_bytes = self.executor.received(recv)
        slot = self.slots[self.plan.op_slot[recv]]
        assert header == str(send).encode()
        assert (address, num_bytes) == (slot.data_ptr(), 8 * self.num_words[send])
        self.num_wrong += (slot[:num_bytes].view(torch.int64) != self._word(send)).sum()
