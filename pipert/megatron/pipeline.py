"""One pipeline of a script: its engine, and a step of Megatron's around a step of the engine's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from pipert.engine import Engine, StepResult
from pipert.megatron import placement
from pipert.megatron.call import Call
from pipert.megatron.chunk_forward import ChunkForward
from pipert.megatron.deferred_loss import DeferredLossForward
from pipert.megatron.lines import say
from pipert.megatron.output_layer import OutputLayerShard, output_layer_of
from pipert.megatron.schedule import checkpoint_pattern
from pipert.megatron.stage import MegatronStage
from pipert.megatron.structure import Announced
from pipert.megatron.sync import GradSync
from pipert.megatron.tied_shards import TiedShards
from pipert.megatron.vocabulary import ScriptsLoss
from pipert.plan import Plan
from pipert.rendezvous import Group


class Pipeline:
    """Runs calls of one model with one number of microbatches. Constructing, running and closing are collective.

    Args:
        plan: the order of a training step; forward-only steps have its placement.
        chunks: this rank's model chunks; each is the stage of the plan at its place among the rank's.
        group: the pipeline's ranks; it moves host memory.
        timeout_ms: the longest wait for another rank.
        splits_vocabulary: whether the model was built with its output layer split.

    Attributes:
        device: where the chunks are.
    """

    def __init__(
        self,
        plan: Plan,
        chunks: tuple[torch.nn.Module, ...],
        group: Group,
        timeout_ms: int,
        *,
        splits_vocabulary: bool = False,
    ) -> None:
        self.plan = plan
        self.device = next((parameter.device for parameter in chunks[0].parameters()), torch.device("cpu"))
        self._rank = dist.get_rank(group)
        self._announced = Announced(group)
        held = [stage for stage in range(plan.num_stages) if self._rank in plan.holders(stage)]
        output_layer = output_layer_of(chunks) if splits_vocabulary else None
        self._stages = {
            stage: self._stage(stage, index, chunks[index], output_layer) for index, stage in enumerate(held)
        }
        self._loss = None if output_layer is None else ScriptsLoss(output_layer, self._stages[held[-1]])
        self._is_tied = output_layer is not None and output_layer.tied
        self._engine = Engine(
            plan,
            self._stages,
            process_group=group,
            seed=None,
            timeout_ms=timeout_ms,
            vocabulary=None if self._loss is None else self._loss.vocabulary,
        )

    def run(self, call: Call) -> tuple[list[Any], StepResult]:
        """Run one call.

        Returns:
            The data that the loss function returned, in the order of microbatches, on the rank that holds the last
            stage, and [] elsewhere; and what the engine says of the step.
        """
        tied = self._tied_shards(call)
        if call.forward_only:
            if tied is not None:
                tied.refresh()
            data, _, result = self._step(call, None)
        else:
            embedding = self._cleared_embedding(call)
            with GradSync(call.config, call.chunks) as sync:
                if tied is not None:
                    tied.refresh()
                data, num_tokens, result = self._step(call, sync)
                if tied is not None:
                    tied.collect()
            self._finalize(call, num_tokens, embedding)
        self._announced.flush()
        return placement.share_losses(data, call.groups.pipeline), result

    def close(self) -> None:
        """Leave the other ranks."""
        self._engine.close()

    def _stage(
        self, stage: int, chunk_idx: int, chunk: torch.nn.Module, output_layer: OutputLayerShard | None
    ) -> MegatronStage:
        last = self.plan.num_stages - 1
        forward = (
            DeferredLossForward(chunk, chunk_idx, output_layer)
            if stage == last and output_layer is not None
            else ChunkForward(chunk, chunk_idx, stage == last)
        )
        neighbours = self.plan.holders(max(stage - 1, 0))[0], self.plan.holders(min(stage + 1, last))[0]
        return MegatronStage(
            forward,
            chunk_idx,
            stage,
            stage == last,
            neighbours,
            self._announced,
            say,
            is_reduced_here=not (stage == 0 and output_layer is not None and output_layer.tied),
        )

    def _step(self, call: Call, sync: GradSync | None) -> tuple[list[Any], torch.Tensor, StepResult]:
        pattern = self._checkpoint_pattern(call)
        for stage, each in self._stages.items():
            each.begin(call, sync, None if pattern is None else partial(_looked_up, pattern, stage))
        if self._loss is not None:
            self._loss.begin(call)
        result = self._engine.eval_step() if call.forward_only else self._engine.step()
        ended = [each.end() for each in self._stages.values()]
        data = [part for parts, _ in ended for part in parts]
        return data, sum((count for _, count in ended[1:]), ended[0][1]), result

    def _tied_shards(self, call: Call) -> TiedShards | None:
        if self._loss is None or not self._is_tied:
            return None
        return TiedShards(self._loss.vocabulary.shard, self._loss.weight, call.chunks[0], call.groups.pipeline)

    def _checkpoint_pattern(self, call: Call) -> dict[tuple[int, int], bool] | None:
        num_partly = call.config.num_microbatches_with_partial_activation_checkpoints
        return None if num_partly is None else checkpoint_pattern(self.plan, self._rank, num_partly)

    def _cleared_embedding(self, call: Call) -> Any:
        """Return the module whose weight gradients of the output layer Megatron defers, with its buffers empty."""
        from megatron.core.pipeline_parallel.schedules import clear_embedding_activation_buffer

        if call.config.finalize_model_grads_func is None or self.plan.num_stages - 1 not in self._stages:
            return None
        return clear_embedding_activation_buffer(call.config, list(call.chunks), is_last_stage=True)

    def _finalize(self, call: Call, num_tokens: torch.Tensor, embedding: Any) -> None:
        config, collection = call.config, call.groups.collection
        if config.finalize_model_grads_func is None:
            return
        from megatron.core.pipeline_parallel.schedules import finish_embedding_wgrad_compute

        finish_embedding_wgrad_compute(config, embedding, embedding is not None, collection.tp)
        config.finalize_model_grads_func(
            list(call.chunks),
            num_tokens if config.calculate_per_token_loss else None,
            pg_collection=collection,
            force_all_reduce=call.force_all_reduce,
        )


def _looked_up(pattern: dict[tuple[int, int], bool], stage: int, microbatch: int) -> bool:
    return pattern[stage, microbatch]
