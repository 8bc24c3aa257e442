"""The memory that an engine works in: the host's, or that of one CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from pipert.errors import ConfigError, PipertError

if TYPE_CHECKING:
    from pipert.replicas import Replica
    from pipert.stages import StageProtocol

Result = TypeVar("Result")


class HostDevice:
    """Host memory."""

    torch_device = torch.device("cpu")
    is_host = True

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies here."""
        return tensor.is_cpu


class CudaDevice:
    """The memory of CUDA device ``index``."""

    is_host = False

    def __init__(self, index: int) -> None:
        self.index = index
        self.torch_device = torch.device("cuda", index)
        self._side: torch.cuda.Stream | None = None
        self._op_pool: Any = None
        self._op_graphs: list[torch.cuda.CUDAGraph] = []

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` lies here."""
        return tensor.get_device() == self.index

    def current_stream(self) -> int:
        """Return the handle (``cudaStream_t``) of torch's current stream."""
        return int(torch.cuda.current_stream(self.torch_device).cuda_stream)

    def warm_up(self, run: Callable[[], Result]) -> Result:
        """Call ``run`` on the stream on which it will be captured: what autograd keeps of a stream is of that one."""
        side, current = self._side_stream(), torch.cuda.current_stream(self.torch_device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = run()
        current.wait_stream(side)
        return result

    def capture(self, run: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Capture what ``run`` enqueues; return its result, and what launches the graph on the current stream.

        Raises:
            ConfigError: something in it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        return self._capture(graph, run), graph.replay

    def capture_op(self, run: Callable[[], None]) -> int:
        """Capture what ``run`` enqueues, in memory shared with earlier calls; return the ``cudaGraph_t``.

        The graphs must be launched in the order in which they were captured. They live as long as this object.

        Raises:
            ConfigError: something in it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        self._op_pool = self._op_pool or torch.cuda.graph_pool_handle()
        self._capture(graph, run, pool=self._op_pool)
        self._op_graphs.append(graph)
        return int(graph.raw_cuda_graph())

    def _side_stream(self) -> torch.cuda.Stream:
        if self._side is None:
            self._side = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        return self._side

    def _capture(self, graph: torch.cuda.CUDAGraph, run: Callable[[], Result], **options: Any) -> Result:
        side = self._side_stream()
        side.wait_stream(torch.cuda.current_stream(self.torch_device))
        fault: Exception | None = None
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local", **options)
            try:
                result = run()
            except Exception as error:
                fault = error
            try:
                graph.capture_end()
            except RuntimeError as error:  # what cannot be captured spoils the end of the capture, too
                fault = fault or error
        if fault is not None:
            raise _not_capturable(fault) from fault
        return result

    def draws(self, run: Callable[[], None]) -> bool:
        """Call ``run``, which may seed the device's default generator; return whether it has drawn from it."""
        generator = torch.cuda.default_generators[self.index]
        generator.set_offset(0)  # where seeding puts it, too
        run()
        return bool(generator.get_offset())

    def empty(self, num_bytes: int) -> Tensor:
        """Allocate ``[num_bytes]`` bytes."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)


Device = HostDevice | CudaDevice


def _not_capturable(fault: Exception) -> ConfigError:
    message = (
        f"cuda_graph: the step cannot be captured: {fault}; what waits for the device (item(), nonzero(), a copy to "
        "the host) has no place in a captured stage"
    )
    if isinstance(fault, PipertError):
        return ConfigError(message, rank=fault.rank, op=fault.op, step=fault.step)
    return ConfigError(message)


def device_of(stages: dict[Replica, StageProtocol]) -> Device:
    """Return where the parameters and buffers of all stages lie: the host's memory if there are none.

    Raises:
        ConfigError: they lie in several places, on a device that is neither a CPU nor CUDA, or not on the current one.
    """
    first: tuple[str, torch.device] | None = None
    for (_, stage), name, tensor in _tensors(stages):
        here = f"stage {stage}: {name}", tensor.device
        first = first or here
        if first[1] != here[1]:
            raise ConfigError(f"{first[0]} is on {first[1]}, {here[0]} on {here[1]}; a process works on one device")
    if first is None or first[1].type == "cpu":
        return HostDevice()
    if first[1].type != "cuda":
        raise ConfigError(f"{first[0]} is on {first[1]}; stages live on the CPU or on a CUDA device")
    index = first[1].index
    if index != torch.cuda.current_device():
        raise ConfigError(
            f"{first[0]} is on {first[1]}, but the current device is cuda:{torch.cuda.current_device()}; call "
            f"torch.cuda.set_device({index}) before anything else"
        )
    return CudaDevice(index)


def _tensors(stages: dict[Replica, StageProtocol]) -> Iterable[tuple[Replica, str, Tensor]]:
    for replica, stage in stages.items():
        module = getattr(stage, "module", None)
        if isinstance(module, torch.nn.Module):
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                yield replica, name, tensor
