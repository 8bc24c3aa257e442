"""The native executor of one plan and its channels, behind one interface: lanes of the host, or streams of a device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from pipert import _core
from pipert.engine.device import CudaDevice, Device, HostDevice
from pipert.engine.ports import Mail
from pipert.errors import ConfigError, PipertError
from pipert.rendezvous import gather

if TYPE_CHECKING:
    from pipert.engine.runner import Settings
    from pipert.plan import Plan

_SPIN_US = 50
_NS_PER_MS = 1e6
_Handler = Callable[[int], None]

TRANSPORTS = {
    "local": "ranks of one process",
    "shm": "host memory",
    "ipc": "CUDA devices of one machine",
    "nccl": "CUDA devices",
}


class Lanes(Mail, Protocol):
    """What an engine uses of them, beside what its ports use."""

    @property
    def device(self) -> Device:
        """Whose memory they move."""
        ...

    def bind(self, handlers: list[_Handler]) -> None:
        """Take a handler for each compute and collective op of this process, in the plan's order."""
        ...

    def step(self, step: int) -> None:
        """Run a step; on a device, enqueue it behind what is on the current stream, which then waits for it."""
        ...

    def wait(self) -> None:
        """Return when the device is done with the last step; raise what has failed, here or on another rank."""
        ...

    def trace_reader(self) -> Callable[[], bytes]:
        """Return what gives the records of the last step."""
        ...

    def status(self) -> str:
        """Tell where every lane stands, a line each."""
        ...

    def check(self) -> None:
        """Raise what has failed, here or on another rank; for handlers that wait by themselves."""
        ...

    def abort(self, reason: str) -> None:
        """End the step that runs, and tell the other ranks."""
        ...

    def close(self) -> None:
        """Stop the lanes and leave the other ranks."""
        ...


class HostLanes:
    """Lanes over host memory."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        """Connect to the other ranks' processes. Blocks until all of them have come."""
        self._channels = _host_channels(plan, settings, for_device=False)
        spin_us = _SPIN_US if plan.num_ranks <= len(os.sched_getaffinity(0)) else 0
        delays = [settings.link_delays_ms.get((lane.peer, lane.rank), (0.0, 0.0)) for lane in plan.lanes]
        delays_ns = [(round(latency * _NS_PER_MS), round(occupancy * _NS_PER_MS)) for latency, occupancy in delays]
        self._executor = _core.Executor(
            plan.native, self._channels, list(settings.ranks), spin_us, settings.timeout_ms, delays_ns
        )
        self.device: Device = HostDevice()
        self.bind = self._executor.bind
        self.step = self._executor.step
        self.post = self._executor.post
        self.received = self._executor.received
        self.slot = self._executor.slot_memory
        self.status = self._executor.status
        self.check = self._executor.check
        self.abort = self._executor.abort

    def wait(self) -> None:
        """See :class:`Lanes`: a step that has returned is done."""

    def trace_reader(self) -> Callable[[], bytes]:
        """See :class:`Lanes`."""
        records = self._executor.trace()
        return lambda: records

    def close(self) -> None:
        """See :class:`Lanes`."""
        self._executor.close()
        self._channels.close()


class DeviceLanes:
    """Streams of a CUDA device. The receive slots are torch's memory, allocated when they are first needed."""

    def __init__(self, plan: Plan, settings: Settings, device: CudaDevice) -> None:
        """Connect to the other ranks' processes. Blocks until all of them have come."""
        if settings.link_delays_ms:
            raise ConfigError("link_delays_ms: messages on a CUDA device cannot be held back")
        self.device: Device = device
        self._cuda = device
        self._op_slot = plan.op_slot
        self._slots: dict[int, Tensor] = {}
        self._reader: Callable[[], _TraceReader | None] = lambda: None
        self._host_channels = _host_channels(plan, settings, for_device=True)
        self._channels = _core.DeviceChannels(
            self._host_channels, settings.transport, device.index, settings.timeout_ms, self._nccl_ids(settings)
        )
        self._executor = _core.StreamExecutor(
            plan.native, self._channels, list(settings.ranks), self._allocate, settings.timeout_ms, settings.trace
        )
        self.bind = self._executor.bind
        self.post = self._executor.post
        self.received = self._executor.received
        self.wait = self._executor.wait
        self.status = self._executor.status
        self.check = self._executor.check
        self.abort = self._executor.abort
        self.run_as = self._executor.run_as

    def step(self, step: int) -> None:
        """See :class:`Lanes`."""
        self._outdate_trace()
        self._executor.step(step, self._cuda.current_stream())

    def launched(self, step: int) -> None:
        """Say that a captured step was launched on the current stream."""
        self._outdate_trace()
        self._executor.launched(step, self._cuda.current_stream())

    def slot(self, recv_op: int) -> Tensor:
        """See :class:`pipert.engine.ports.Mail`."""
        memory = self._slots.get(self._op_slot[recv_op])
        return self._cuda.empty(0) if memory is None else memory

    def trace_reader(self) -> Callable[[], bytes]:
        """See :class:`Lanes`. It waits for the device, and must be called before the next step."""
        reader = _TraceReader(self._executor)
        self._reader = weakref.ref(reader)
        return reader.read

    def close(self) -> None:
        """See :class:`Lanes`."""
        reader = self._reader()
        if reader is not None:  # somebody may still ask for the last step
            with suppress(PipertError):
                reader.read()
        self._executor.close()
        self._host_channels.close()

    def _nccl_ids(self, settings: Settings) -> list[bytes]:
        """Return an id for each edge, made by its source; none where NCCL does not connect processes. Collective."""
        if settings.transport != "nccl" or settings.group is None:
            return []
        edges = self._host_channels.edges
        mine = [_core.nccl_id().hex() if source in settings.ranks else "" for source, _ in edges]
        made = gather(settings.group, mine)
        return [bytes.fromhex(made[source][edge]) for edge, (source, _) in enumerate(edges)]

    def _outdate_trace(self) -> None:
        reader = self._reader()
        if reader is not None:
            reader.is_outdated = True

    def _allocate(self, slot: int, num_bytes: int) -> int:
        self._slots.pop(slot, None)
        self._slots[slot] = self._cuda.empty(num_bytes)
        return self._slots[slot].data_ptr()


class _TraceReader:
    """Reads what was recorded of one step, once."""

    def __init__(self, executor: _core.StreamExecutor) -> None:
        self.is_outdated = False
        self._executor = executor
        self._records: bytes | None = None

    def read(self) -> bytes:
        if self._records is None:
            if self.is_outdated:
                raise ConfigError("the trace of a step on a CUDA device must be read before the next step runs")
            self._records = self._executor.trace()
        return self._records


def open_lanes(plan: Plan, settings: Settings) -> Lanes:
    """Make the executor of ``plan`` for the engine's device."""
    if isinstance(settings.device, HostDevice):
        return HostLanes(plan, settings)
    return DeviceLanes(plan, settings, settings.device)


def choose_transport(transport: str | None, *, on_host: bool, one_process: bool) -> str:
    """Return the transport by its name, or the one that fits where None is asked for.

    Raises:
        ConfigError: there is none of this name, or it does not fit.
    """
    if transport is not None and transport not in TRANSPORTS:
        raise ConfigError(f"transport is one of {', '.join(TRANSPORTS)}, not {transport!r}")
    if on_host:
        fitting = ["local"] if one_process else ["shm"]
    else:
        fitting = ["local", "ipc", "nccl"] if one_process else ["ipc", "nccl"]
    if transport is not None and transport not in fitting:
        where = "host memory" if on_host else "a CUDA device"
        ranks = "all ranks in this process" if one_process else "a process for each rank"
        raise ConfigError(
            f"transport={transport!r} is for {TRANSPORTS[transport]}; for {where} and {ranks} there is "
            f"{', '.join(fitting)}"
        )
    return transport or fitting[0]


def _host_channels(plan: Plan, settings: Settings, *, for_device: bool) -> _core.Channels:
    if settings.session is None:
        return _core.Channels.local(plan.native, for_device)
    return _core.Channels.shm(plan.native, settings.ranks[0], settings.session, settings.timeout_ms, for_device)
