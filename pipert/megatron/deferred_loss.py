"""The last chunk's forward where the output layer is split: it ends at hidden states, and the loss comes later.

Shapes: b samples and s positions of a microbatch, N = s · b tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.megatron import placement
from pipert.megatron.chunk_forward import ChunkForward, checked
from pipert.megatron.output_layer import OPTION, OutputLayerShard, StandIn
from pipert.stages import Tensors


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A microbatch between its forward and its loss: what stands in for the losses, and the script's loss function."""

    stand_in: StandIn
    loss_func: Callable[..., Any] | None


class DeferredLossForward(ChunkForward):
    """Calls the two halves of Megatron's own ``forward_step`` apart.

    In the first, the model returns a tensor that stands in for the losses of its tokens; the script hands it on to its
    loss function unseen. In the second, when the losses are in it, the loss function is called.

    Args:
        chunk: the last stage's model chunk.
        chunk_idx: its place among the chunks of its rank.
        output_layer: its shard.
    """

    def __init__(self, chunk: nn.Module, chunk_idx: int, output_layer: OutputLayerShard) -> None:
        super().__init__(chunk, chunk_idx, is_last=True)
        self._output_layer = output_layer
        self._unfinished: dict[int, _Unfinished] = {}

    def forward(self, *inputs: Tensor) -> Tensors:
        """Run the chunk up to its hidden states [s, b, D]."""
        hidden_sbD, _ = self._forward_step(self._up_to_the_output_layer, inputs, makes_loss=False)
        return (hidden_sbD,)

    def targets(self, microbatch: int) -> Tensor:
        """Return the targets [N] of a microbatch whose forward is done."""
        return self._unfinished[microbatch].stand_in.targets_N

    def loss(self, microbatch: int, loss_N: Tensor) -> tuple[Any, Tensor]:
        """Give the script's loss function the losses of all tokens.

        Returns:
            What Megatron makes of what that returns, and the tensor of losses, of which it is a function.
        """
        from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss

        call, unfinished = self._call, self._unfinished.pop(microbatch)
        assert call is not None
        losses_bs = unfinished.stand_in.losses_bs
        losses_bs.data.copy_(loss_N.view(*losses_bs.shape[::-1]).transpose(0, 1))
        if call.config.timers is not None:  # whose other end is in the function
            call.config.timers("forward-compute", log_level=2).start()
        with placement.running(self._chunk_idx):
            loss, num_tokens = forward_step_calc_loss(
                self.chunk,
                losses_bs,
                unfinished.loss_func,
                call.config,
                self._chunk_idx if call.interleaved else None,
                call.collect_non_loss_data,
                call.num_microbatches,
                self._data[microbatch],
                call.context_parallel_size,
                True,
            )
        self._num_tokens += num_tokens
        return loss, losses_bs

    def end(self) -> tuple[list[Any], Tensor]:
        """See :meth:`ChunkForward.end`."""
        self._unfinished.clear()
        return super().end()

    def _up_to_the_output_layer(self, *args: Any) -> tuple[Tensor, None]:
        """Run the script's function, and return hidden states in the place of the output."""
        call = self._call
        assert call is not None
        with self._output_layer.expected() as made:
            output, loss_func = checked(call.forward_step_func, call.collect_non_loss_data)(*args)
            stand_in = made[0] if len(made) == 1 else None
        if stand_in is None or output is not stand_in.losses_bs:
            calls = {0: "calls the model without labels", 1: "returns something else than the model did"}
            found = calls.get(len(made), "calls the model more than once")
            raise ConfigError(
                f"forward_step_func {found}; where the output layer is split ({OPTION}), it must call the model once, "
                "with labels, and return its output as it is: losses of tokens are there when the loss function is "
                "called, and logits never"
            )
        self._unfinished[self._microbatch] = _Unfinished(stand_in, loss_func)
        return stand_in.hidden_sbD, None
