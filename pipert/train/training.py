"""Training: this process's stages of the model, their optimizer, and the text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipert.costs import StageCosts
from pipert.engine import Engine
from pipert.engine.vocab import splits_vocabulary
from pipert.numerics import Copy
from pipert.plan import Plan
from pipert.replicas import Replica
from pipert.stages import SplitVocabulary, Stage
from pipert.train import checkpoint
from pipert.train.clock import ClockedStage, ClockedVocabulary, clock_loss
from pipert.train.config import TrainConfig
from pipert.train.data import Batches
from pipert.train.digest import Digests, gradient_digests, parameter_digests
from pipert.train.model import DTYPES, build_stage, loss_fn, main_grad_dtype
from pipert.train.optim import AdamW, learning_rate, stage_parameters
from pipert.train.place import Place
from pipert.train.plans import recomputed_stages, tied_parameters
from pipert.train.resume import about, find
from pipert.train.shards import build_shard, check_both_ends, shard_parameters
from pipert.train.text import load_text
from pipert.train.verify import StepBits
from pipert.train.verify_split import StepValues, gradient_values, parameter_values
from pipert.train.work import StepNote


class Training:
    """See Work. Made on every rank, because a checkpoint is loaded by all together."""

    def __init__(self, config: TrainConfig, plan: Plan, place: Place, first_step: int, device: torch.device) -> None:
        num_stages, dtype = plan.num_stages, DTYPES[config.dtype]
        self._config = config
        split = check_both_ends(*splits_vocabulary(plan))
        modules = {
            (rank, stage): build_stage(
                config.model, num_stages, stage, seed=config.seed, dtype=dtype, device=device, split=split
            )
            for rank, stage in place.replicas
        }
        again, main_grad = recomputed_stages(plan), main_grad_dtype(dtype)
        clocked = config.device == "cpu"  # on a GPU, ops end after the host is done with them
        self._vocabulary = {
            rank: build_shard(
                config.model,
                plan.num_ranks,
                rank,
                seed=config.seed,
                dtype=dtype,
                device=device,
                main_grad_dtype=main_grad,
                kind=ClockedVocabulary if clocked else SplitVocabulary,
            )
            for rank in (sorted({rank for rank, _ in place.replicas}) if split else ())
        }
        rows = shard_parameters(plan, self._vocabulary)
        self._shards = {copy: self._vocabulary[copy.rank].shard for copy in rows}
        self._optimizer = AdamW({**stage_parameters(modules), **rows}, config.lr)
        if config.resume is not None:
            checkpoint.load(find(config.resume), self._optimizer, self._shards)
        kind = ClockedStage if clocked else Stage
        self._stages = {
            (rank, stage): kind(
                module,
                recompute=stage in again,
                main_grad_dtype=main_grad,
                batch_weight_grads=config.batch_weight_grads,
            )
            for (rank, stage), module in modules.items()
        }
        num_sequences = config.batch_size * plan.num_microbatches
        self._batches = Batches(load_text(config.data), num_sequences, config.model.seq_len, config.seed, device)
        last = [
            stage
            for (_, index), stage in self._stages.items()
            if index == num_stages - 1 and isinstance(stage, ClockedStage)
        ]
        self._engine = Engine(
            plan,
            self._stages,
            None if split else clock_loss(loss_fn, last) if last else loss_fn,
            process_group=place.group,
            optimizer=self._optimizer,
            clip_norm=config.clip,
            tied=() if split else tied_parameters(config.model, num_stages),
            seed=config.seed,
            vocabulary=self._vocabulary,
        )
        self._engine.num_steps = first_step
        self._gradients: Digests = {}
        self._gradient_values: dict[Copy, Tensor] = {}
        if config.verify:
            self._optimizer.register_step_pre_hook(self._note_gradients)

    def step(self, step: int) -> StepNote:
        """See Work."""
        config = self._config
        self._optimizer.set_lr(learning_rate(config, step))
        before = parameter_values(self._optimizer.model_parameters) if config.verify and self._vocabulary else {}
        result = self._engine.step(*self._batches(step))
        loss = None if result.loss is None else result.loss.item()
        bits, values = None, None
        if config.verify:
            norm = self._engine.settle() if result.grad_norm is None else result.grad_norm
            assert norm is not None
            losses = () if result.losses is None else tuple(result.losses.tolist())
            if self._vocabulary:
                values = StepValues(losses, norm.item(), before, self._gradient_values, self._shards)
            else:
                bits = StepBits(losses, norm.item(), self._gradients)
        return StepNote(result.records, result.peak_activation_bytes, loss, bits, values)

    def costs(self) -> dict[Replica, StageCosts]:
        """See Work. They are CPU times; on a GPU nothing is measured, the trace has all there is."""
        return {
            replica: stage.costs()
            for replica, stage in self._stages.items()
            if isinstance(stage, ClockedStage) and stage.forward_end_ns
        }

    def vocab_costs(self) -> list[dict[str, float]]:
        """See Work."""
        return [shard.costs() for shard in self._vocabulary.values() if isinstance(shard, ClockedVocabulary)]

    def digests(self) -> Digests:
        """See Work."""
        self._engine.settle()
        return parameter_digests(self._optimizer.model_parameters)

    def save(self, num_steps: int) -> Path:
        """See Work."""
        assert self._config.save is not None
        self._engine.settle()
        return checkpoint.save(self._config.save, num_steps, self._optimizer, about(self._config), self._shards)

    def close(self) -> None:
        """See Work."""
        self._engine.close()

    def _note_gradients(self, *_: object) -> None:
        if self._vocabulary:
            self._gradient_values = gradient_values(self._optimizer.model_parameters)
        else:
            self._gradients = gradient_digests(self._optimizer.model_parameters)
