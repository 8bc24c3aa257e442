"""Records the first steps of a script, and compares them with what another run of it recorded."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.megatron.names import named_parameters


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One training step on one rank.

    Attributes:
        time_ms: of the forward-backward call.
        num_losses: how many numbers the loss functions returned as data here, and
        differing_losses: how many of them have other bits than in the run before.
        num_gradients: how many parameters have a gradient here, and
        differing_gradients: name → norm of the difference over the norm, of those with other bits.
    """

    time_ms: float
    num_losses: int
    differing_losses: int
    num_gradients: int
    differing_gradients: dict[str, float]


@dataclass(slots=True)
class Recording:
    """What a rank has recorded.

    Attributes:
        steps: the training steps.
        peak_memory_bytes: the most that the device held for torch, or the process in memory without a device.
        copied_parameters: how many parameters began as in the run before only because they were copied from it.
    """

    steps: list[RecordedStep] = field(default_factory=list)
    peak_memory_bytes: int = 0
    copied_parameters: int = 0


class Recorder:
    """Stands around a script's forward-backward function.

    Tensors go to files named after what they are, not after the rank that holds them, since another placement has them
    on another rank.

    Args:
        folder: for the files of both runs.
        num_steps: after so many training steps the script is ended.
        compares: whether this is the second run: it starts from the parameters of the first, and compares.
    """

    def __init__(self, folder: Path, num_steps: int, *, compares: bool) -> None:
        self._folder = folder
        self._num_steps = num_steps
        self._compares = compares
        self._recording = Recording()

    def begin(self, chunks: Sequence[torch.nn.Module]) -> None:
        """Record the parameters that chunks begin with; in the second run, begin with those of the first."""
        for name, parameter in named_parameters(chunks):
            path = self._path("initial", name)
            if not self._compares:
                _save(path, parameter.detach())
                continue
            expected = _load(path)
            if expected is not None and not torch.equal(expected, parameter.detach().cpu()):
                parameter.data.copy_(expected)
                self._recording.copied_parameters += 1

    def around(self, forward_backward: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """Return ``forward_backward``, recorded; after the last step it ends the process with SystemExit."""

        def recorded(**arguments: Any) -> list[Any]:
            start = time.perf_counter()
            data = forward_backward(**arguments)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if not arguments.get("forward_only"):
                self._record(_as_list(arguments["model"]), data, 1000 * (time.perf_counter() - start))
            return data

        return recorded

    def _record(self, chunks: list[torch.nn.Module], data: list[Any], time_ms: float) -> None:
        step = str(len(self._recording.steps))
        losses = [torch.as_tensor(value) for value in _numbers(data if _reads_losses() else [])]
        differing_losses = sum(self._differs(step, f"loss {i}", loss) is not None for i, loss in enumerate(losses))
        gradients = [(name, _gradient(each)) for name, each in named_parameters(chunks)]
        present = {name: gradient for name, gradient in gradients if gradient is not None}
        differences = {name: self._differs(step, name, gradient) for name, gradient in present.items()}
        differing = {name: difference for name, difference in differences.items() if difference is not None}
        self._recording.steps.append(RecordedStep(time_ms, len(losses), differing_losses, len(present), differing))
        if len(self._recording.steps) == self._num_steps:
            self._end()

    def _differs(self, step: str, name: str, tensor: Tensor) -> float | None:
        """Save ``tensor``, or return by how much it differs from the one saved: None where it has the same bits."""
        path = self._path(step, name)
        if not self._compares:
            _save(path, tensor.detach())
            return None
        expected, found = _load(path), tensor.detach().cpu()
        if expected is None or expected.shape != found.shape:
            return float("inf")
        path.unlink(missing_ok=True)
        if torch.equal(expected, found):
            return None
        difference = torch.linalg.vector_norm(expected.double() - found.double())
        return float(difference / torch.linalg.vector_norm(expected.double()).clamp(min=1e-300))

    def _end(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._recording.peak_memory_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else usage
        run = "second" if self._compares else "first"
        (self._folder / f"{run}-{dist.get_rank()}.json").write_text(json.dumps(asdict(self._recording)))
        dist.barrier()
        raise SystemExit(0)

    def _path(self, step: str, name: str) -> Path:
        from megatron.core import parallel_state

        column = dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())[0]
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self._folder / f"column{column}" / step / f"{digest}.pt"


def _reads_losses() -> bool:
    """Whether scripts read losses on this rank: in a V, a second one has them, too."""
    from megatron.core import parallel_state

    group = parallel_state.get_pipeline_model_parallel_group()
    return bool(dist.get_rank(group) == group.size() - 1)


def _as_list(model: Any) -> list[torch.nn.Module]:
    return list(model) if isinstance(model, (list, tuple)) else [model]


def _gradient(parameter: torch.nn.Parameter) -> Tensor | None:
    gradient = getattr(parameter, "main_grad", None)
    return parameter.grad if gradient is None else gradient


def _numbers(data: Any) -> Iterator[Any]:
    """Give the tensors and numbers in nested lists, tuples and dictionaries, in their order."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, (list, tuple)):
        for part in data:
            yield from _numbers(part)
    elif isinstance(data, (Tensor, int, float)):
        yield data


def _save(path: Path, tensor: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensor.cpu(), path)


def _load(path: Path) -> Tensor | None:
    if not path.exists():
        return None
    tensor: Tensor = torch.load(path, weights_only=True)
    return tensor
