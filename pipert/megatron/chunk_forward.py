"""The forward of a model chunk, as a module from tensors to tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.megatron import placement
from pipert.megatron.call import Call
from pipert.megatron.structure import Structure, flatten
from pipert.stages import Tensors


class ChunkForward(nn.Module):
    """Calls Megatron's own ``forward_step`` for one chunk, and keeps what that gives beside the output.

    Args:
        chunk: the model chunk.
        chunk_idx: its place among the chunks of its rank.
        is_last: whether it ends the pipeline; its output is then the loss.
    """

    def __init__(self, chunk: nn.Module, chunk_idx: int, is_last: bool) -> None:
        super().__init__()
        self.chunk = chunk
        self.structure: Structure | None = None
        self._chunk_idx = chunk_idx
        self._is_last = is_last
        self._call: Call | None = None
        self._is_checkpointed: Callable[[int], bool] | None = None
        self._microbatch = 0
        self._arrived: Structure | None = None
        self._data: dict[int, list[Any]] = {}
        self._num_tokens = torch.zeros((), dtype=torch.int)

    def begin(self, call: Call, is_checkpointed: Callable[[int], bool] | None) -> None:
        """Begin a step; see :meth:`pipert.megatron.stage.MegatronStage.begin`."""
        self._call, self._is_checkpointed = call, is_checkpointed
        self._data = {}
        device = next((parameter.device for parameter in self.chunk.parameters()), None)
        self._num_tokens = torch.zeros((), dtype=torch.int, device=device)

    def end(self) -> tuple[list[Any], Tensor]:
        """End it: return the loss data in the order of microbatches, and the number of tokens."""
        self._call = self._is_checkpointed = None
        data = [part for microbatch in sorted(self._data) for part in self._data[microbatch]]
        self._data = {}
        return data, self._num_tokens

    def expect(self, microbatch: int, arrived: Structure | None) -> None:
        """Say which microbatch comes next, and how its tensors were arranged; None on the first stage."""
        self._microbatch, self._arrived = microbatch, arrived

    def forward(self, *inputs: Tensor) -> Tensors:
        """Run the chunk; its output's structure is in ``structure``."""
        call = self._call
        assert call is not None
        if self._is_last:
            function = checked(call.forward_step_func, call.collect_non_loss_data)
            output, num_tokens = self._forward_step(function, inputs, makes_loss=True)
            self._num_tokens += num_tokens
            return (output,) if isinstance(output, Tensor) else ()
        output, _ = self._forward_step(call.forward_step_func, inputs, makes_loss=False)
        self.structure, outputs = flatten(output)
        return outputs

    def _forward_step(
        self, forward_step_func: Callable[..., Any], inputs: Tensors, *, makes_loss: bool
    ) -> tuple[Any, Tensor]:
        """Call Megatron's own; return what it makes of the output, and the number of tokens."""
        from megatron.core.pipeline_parallel.schedules import forward_step

        call, microbatch = self._call, self._microbatch
        assert call is not None
        checkpointed = None if self._is_checkpointed is None else self._is_checkpointed(microbatch)
        with placement.running(self._chunk_idx):
            (output,), num_tokens = forward_step(
                forward_step_func,
                call.data_iterators[self._chunk_idx],
                self.chunk,
                call.num_microbatches,
                [None] if self._arrived is None else self._arrived.input_tensor(inputs),
                self._data.setdefault(microbatch, []),
                call.config,
                call.context_parallel_size,
                call.collect_non_loss_data,
                checkpointed,
                call.is_first_microbatch(microbatch),
                microbatch,
                self._chunk_idx if call.interleaved else None,
                makes_loss,
            )
        return output, num_tokens


def checked(forward_step_func: Callable[..., Any], collects: bool) -> Callable[..., Any]:
    """Return the user's function with a loss function that is held to what Megatron takes from it.

    Raises:
        ConfigError: from the function: it does not return (output, loss function); from the loss function: it returns
            neither two nor three values.
    """

    def run(*args: Any) -> tuple[Any, Any]:
        result = forward_step_func(*args)
        if not (isinstance(result, Sequence) and len(result) == 2):
            raise ConfigError(f"forward_step_func must return (output, loss function), it returned {_about(result)}")
        output, loss_func = result
        return output, loss_func if loss_func is None or collects else _held(loss_func)

    return run


def _held(loss_func: Callable[..., Any]) -> Callable[..., Any]:
    def run(output: Any) -> Any:
        result = loss_func(output)
        if not isinstance(result, Sequence) or len(result) not in (2, 3):
            raise ConfigError(
                "the loss function must return (loss, data) or (loss, number of tokens, data), it returned "
                f"{_about(result)}"
            )
        return result

    return run


def _about(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
