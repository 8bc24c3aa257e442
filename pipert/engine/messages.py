"""What a message between two ranks is: tensors as raw bytes, and a small header with their layouts.

Layouts are kept: a transposed tensor arrives transposed, a broadcast one (stride 0) arrives broadcast and travels as
the elements it has. A tensor whose elements do not lie densely (a slice) is packed first.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from pipert.engine.device import Device
from pipert.errors import ConfigError
from pipert.stages import Grads

HEADER_LIMIT_BYTES = 4096
SEGMENT_ALIGNMENT_BYTES = 64

_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

Memory = memoryview | Tensor
"""What a message lies in: a writable buffer of the host, or bytes ``[n]`` of a device."""

Segments = list[tuple[int, int]]
"""Address and number of bytes of each tensor that there is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor lies in its segment.

    Attributes:
        dtype: the type of its elements.
        shape: its sizes.
        stride: its strides, in elements.
        requires_grad: whether the producer's output needed a gradient.
        num_bytes: the size of its segment.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    num_bytes: int

    def describes(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` has this layout and can be sent as it lies."""
        return (
            tensor.shape == self.shape
            and tensor.dtype is self.dtype
            and tensor.stride() == self.stride
            and tensor.requires_grad is self.requires_grad
            and not tensor.is_conj()
            and not tensor.is_neg()
        )


Layouts = tuple["Layout | None", ...]


class Packer:
    """Makes the header and the segments of the messages of one stage in one direction.

    Shapes seldom change from one microbatch to the next, so the last layouts and their header are kept.
    """

    def __init__(self, device: Device) -> None:
        """Pack tensors of ``device``."""
        self._device = device
        self._layouts: Layouts = ()
        self._sizes: list[int] = []
        self._header = write_header(())

    def pack(self, tensors: Grads) -> tuple[Segments, bytes, Grads]:
        """Return segments, header, and the tensors that must live until the segments are sent.

        Raises:
            ConfigError: a tensor that is not dense memory of the device, or too many tensors for one header.
        """
        layouts = self._layouts
        if len(tensors) != len(layouts) or not all(map(self._fits, layouts, tensors)):
            tensors = tuple(None if tensor is None else self._sendable(tensor) for tensor in tensors)
            self._learn(tensors)
        return [(t.data_ptr(), n) for t, n in zip(_present(tensors), self._sizes, strict=True)], self._header, tensors

    def _fits(self, layout: Layout | None, tensor: Tensor | None) -> bool:
        if layout is None or tensor is None:
            return layout is None and tensor is None
        return layout.describes(tensor) and self._device.holds(tensor)

    def _sendable(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` itself if its elements lie densely, else a packed copy."""
        if not self._device.holds(tensor):
            raise ConfigError(f"a tensor on {tensor.device} is handed on by a stage on {self._device.torch_device}")
        if tensor.layout is not torch.strided:
            raise ConfigError(f"a {tensor.layout} tensor cannot be handed on to another rank; make it dense")
        if _num_elements(tensor) is not None and not tensor.is_conj() and not tensor.is_neg():
            return tensor
        packed = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return packed.requires_grad_(tensor.requires_grad)

    def _learn(self, tensors: Grads) -> None:
        self._layouts = tuple(None if tensor is None else _layout(tensor) for tensor in tensors)
        self._sizes = [layout.num_bytes for layout in self._layouts if layout is not None]
        self._header = write_header(self._layouts)


def write_header(layouts: Layouts) -> bytes:
    """Encode the layouts of a message's tensors, None for a tensor that is not there.

    Raises:
        ConfigError: they take more than :data:`HEADER_LIMIT_BYTES`.
    """
    rows = [
        None if x is None else [str(x.dtype).removeprefix("torch."), x.shape, x.stride, x.requires_grad, x.num_bytes]
        for x in layouts
    ]
    header = json.dumps(rows, separators=(",", ":")).encode()
    if len(header) > HEADER_LIMIT_BYTES:
        raise ConfigError(
            f"a message of {len(layouts)} tensors needs a header of {len(header)} bytes, more than "
            f"{HEADER_LIMIT_BYTES}; hand on fewer tensors"
        )
    return header


@functools.lru_cache(maxsize=256)
def read_header(header: bytes) -> Layouts:
    """Decode what :func:`write_header` wrote."""
    return tuple(
        None if row is None else Layout(_DTYPES[row[0]], tuple(row[1]), tuple(row[2]), row[3], row[4])
        for row in json.loads(header)
    )


def views(memory: Memory, layouts: Layouts) -> list[Tensor | None]:
    """Give the tensors of a message as views over ``memory``, in which its segments lie.

    The segments lie one after another, each start rounded up to :data:`SEGMENT_ALIGNMENT_BYTES`.
    """
    start = 0
    result: list[Tensor | None] = []
    for layout in layouts:
        if layout is None:
            result.append(None)
            continue
        result.append(_view(memory, start, layout))
        start += -(-layout.num_bytes // SEGMENT_ALIGNMENT_BYTES) * SEGMENT_ALIGNMENT_BYTES
    return result


def _view(memory: Memory, start: int, layout: Layout) -> Tensor:
    if layout.num_bytes == 0:
        device = memory.device if isinstance(memory, Tensor) else None
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=device)
    if isinstance(memory, Tensor):
        flat = memory[start : start + layout.num_bytes].view(layout.dtype)
    else:
        num_elements = layout.num_bytes // layout.dtype.itemsize
        flat = torch.frombuffer(memory, dtype=layout.dtype, offset=start, count=num_elements)
    return flat.as_strided(layout.shape, layout.stride)


def _present(tensors: Grads) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _layout(tensor: Tensor) -> Layout:
    num_elements = _num_elements(tensor)
    assert num_elements is not None, "only dense tensors have a layout"
    num_bytes = num_elements * tensor.dtype.itemsize
    return Layout(tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad, num_bytes)


def _num_elements(tensor: Tensor) -> int | None:
    """How many elements lie in memory: one for each index along a broadcast dimension; None if not densely."""
    if tensor.numel() == 0:
        return 0
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1 or stride == 0:
            continue
        if stride != expected:
            return None
        expected *= size
    return expected
