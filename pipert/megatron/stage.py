"""A Megatron model chunk as a stage of a plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from pipert.errors import ConfigError
from pipert.megatron.call import Call
from pipert.megatron.chunk_forward import ChunkForward
from pipert.megatron.deferred_loss import DeferredLossForward
from pipert.megatron.layers import DelayedWgrads, early_matrices, fallback_reason
from pipert.megatron.output_layer import OutputLayerShard
from pipert.megatron.root_grad import NO_LOSS, root_grad
from pipert.megatron.structure import Announced
from pipert.megatron.sync import GradSync
from pipert.stages import Grads, Stage, Tensors


class MegatronStage:
    """Runs the ops of one chunk (see :class:`pipert.stages.StageProtocol`).

    A forward is Megatron's own ``forward_step``, which sets the chunk's input, calls the user's function, and on the
    last stage the loss function; :class:`pipert.Stage` does the rest.

    Args:
        forward: the model chunk's.
        chunk_idx: its place among the chunks of its rank.
        stage: its number in the pipeline.
        is_last: whether it ends the pipeline.
        neighbours: the ranks of the stages before and behind.
        announced: what the stages hand on.
        report: takes lines for the user.
        is_reduced_here: whether the chunk's gradients are complete with its last op; else they are held back to the end
            of the step, and Megatron reduces them when it finalizes them.
    """

    def __init__(
        self,
        forward: ChunkForward,
        chunk_idx: int,
        stage: int,
        is_last: bool,
        neighbours: tuple[int, int],
        announced: Announced,
        report: Callable[[str], None],
        *,
        is_reduced_here: bool = True,
    ) -> None:
        chunk = forward.chunk
        self.module = forward
        shards = [module for module in chunk.modules() if isinstance(module, OutputLayerShard)]
        self._adds_shard_gradients = any(not shard.tied for shard in shards)
        # Megatron's data parallelism moves each gradient into a main gradient as it comes.
        self._stage = Stage(self.module, weight_grads_in_pieces=hasattr(chunk, "ddp_config"))
        self._chunk_idx = chunk_idx
        self._stage_idx = stage
        self._is_last = is_last
        self._makes_loss = is_last and not isinstance(forward, DeferredLossForward)
        self._neighbours = neighbours
        self._announced = announced
        self._report = report
        self._is_reduced_here = is_reduced_here
        self._reported: set[str] = set()
        self._delayed = DelayedWgrads(chunk)
        self._losses: dict[int, Tensor] = {}
        self._whole: set[int] = set()
        self._call: Call | None = None
        self._sync: GradSync | None = None
        self._num_done = 0
        self._num_done_of_shard = 0
        self._has_split = False

    def begin(self, call: Call, sync: GradSync | None, is_checkpointed: Callable[[int], bool] | None) -> None:
        """Begin a step.

        Args:
            call: what to run.
            sync: when gradients are reduced; None where there are none.
            is_checkpointed: tells of a microbatch whether all of its activations are checkpointed; None where the
                configuration does not distinguish microbatches.
        """
        self._call, self._sync = call, sync
        self._num_done = self._num_done_of_shard = 0
        self.module.begin(call, is_checkpointed)

    def end(self) -> tuple[list[Any], Tensor]:
        """End it: return the loss data in the order of microbatches, and the number of tokens."""
        self._call = self._sync = None
        return self.module.end()

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch``; on the last stage its loss, too, unless that is deferred."""
        assert self._sync is not None
        self._sync.before_forward(self._chunk_idx, microbatch)
        self._expect(microbatch)
        # As Megatron has it, whatever arrives needs a gradient: reentrant checkpoints run only where an input does.
        inputs = tuple([x.detach().requires_grad_(x.is_floating_point()) for x in inputs])
        outputs = self._stage.forward(microbatch, inputs)
        if self._makes_loss:
            if not outputs:
                raise ConfigError(NO_LOSS)
            self._losses[microbatch] = outputs[0]
            return ()
        if not self._is_last:
            self._tell_structure()
        return outputs

    def forward_only(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Run the forward of ``microbatch`` without gradients."""
        self._expect(microbatch)
        outputs = self._stage.forward_only(microbatch, inputs)
        if self._makes_loss:
            return ()
        if not self._is_last:
            self._tell_structure()
        return outputs

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """Run the full backward."""
        with self._timed(), self._adding_gradients():
            result = self._stage.backward(microbatch, self._root_grads(microbatch, grads))
            self._delayed.run()
        return result

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """Return the inputs' gradients; where the chunk cannot be split, run the full backward."""
        reason = self._reason_not_to_split(microbatch)
        if reason is not None:
            self._tell_once(f"its full backward runs at I, and nothing at W: {reason}")
            self._whole.add(microbatch)
            return self.backward(microbatch, grads)
        with self._timed():
            result = self._stage.input_grad(microbatch, self._root_grads(microbatch, grads))
        if not self._has_split:
            self._has_split = True
            self._tell_early(self._stage.early_weight_grads(microbatch))
        return result

    def weight_grad(self, microbatch: int) -> None:
        """Add the parameters' gradients to what they have."""
        if microbatch in self._whole:
            self._whole.remove(microbatch)
            return
        with self._timed(), self._adding_gradients():
            self._stage.weight_grad(microbatch)
            self._delayed.run()

    def recompute(self, microbatch: int) -> None:
        """Megatron recomputes by itself, within the backward (``recompute_granularity``)."""
        raise ConfigError("the plan recomputes; with Megatron, use recompute_granularity instead")

    def discard(self) -> None:
        """Drop everything kept for unfinished microbatches, after a step that failed."""
        self._stage.discard()
        self._losses.clear()
        self._whole.clear()
        self._call = self._sync = None
        self.module.end()

    @property
    def activation_bytes(self) -> int:
        """The memory held now for unfinished microbatches."""
        return self._stage.activation_bytes

    def _expect(self, microbatch: int) -> None:
        before = self._stage_idx - 1
        self.module.expect(microbatch, None if before < 0 else self._announced.of(before, self._neighbours[0]))

    def _tell_structure(self) -> None:
        assert self.module.structure is not None
        self._announced.tell(self._stage_idx, self.module.structure, self._neighbours[1])

    def _root_grads(self, microbatch: int, grads: Grads) -> Grads:
        """Return the gradients that enter the graph: on the last stage, that of the scaled loss to the loss."""
        if not self._makes_loss:
            return grads
        assert self._call is not None
        loss = self._losses.pop(microbatch)
        return root_grad(loss, loss, self._call.config) if loss.requires_grad else ()

    def _reason_not_to_split(self, microbatch: int) -> str | None:
        """Look at the graph: once, unless the configuration recomputes some microbatches and others not."""
        assert self._call is not None
        if self._has_split and self._call.config.recompute_granularity is None:
            return None
        return fallback_reason(self._stage.roots(microbatch))

    def _tell_early(self, parameters: Sequence[Tensor]) -> None:
        """Name the matrices whose gradients are computed at I; vectors are meant to be."""
        names = early_matrices(self.module.chunk, parameters)
        if names:
            self._tell_once(
                f"the gradients of {len(names)} matrices are computed at I, for lack of a rule that splits their "
                f"layers: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            )

    @contextlib.contextmanager
    def adding_shard_gradient(self, weight: Tensor, complete: Callable[[], None]) -> Iterator[None]:
        """Surround a T whose shard of the output layer is this chunk's.

        Args:
            weight: of the shard.
            complete: called when its gradient has all of its parts.
        """
        assert self._call is not None
        assert self._sync is not None
        self._num_done_of_shard += 1
        is_last = self._num_done_of_shard == self._call.num_microbatches
        counts = self._adds_shard_gradients and self._sync.reduces_at_once
        with self._adding_gradients() if counts else contextlib.nullcontext():
            yield
            if is_last:
                complete()
        if is_last:
            self._sync.tell_ready(weight, self.module.chunk)

    @contextlib.contextmanager
    def _adding_gradients(self) -> Iterator[None]:
        """Surround an op that adds to the parameters' gradients."""
        assert self._call is not None
        assert self._sync is not None
        self._num_done += 1
        num_ops = self._call.num_microbatches * (1 + (self._adds_shard_gradients and self._sync.reduces_at_once))
        if self._num_done < num_ops or not self._is_reduced_here:
            yield
            return
        with self._sync.last_gradients(self._chunk_idx):
            yield

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Surround an op that Megatron's timers count as backward."""
        assert self._call is not None
        timers = self._call.config.timers
        if timers is None:
            yield
            return
        timers("backward-compute", log_level=2).start()
        yield
        timers("backward-compute").stop()

    def _tell_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self._report(f"stage {self._stage_idx}: {line}")
