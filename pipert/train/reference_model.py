"""The model of a run, whole, in this process: what ``--verify`` computes with."""

from __future__ import annotations

import torch

from pipert.plan import Plan
from pipert.reference import ReferenceResult, reference_step
from pipert.replicas import replicas
from pipert.train.config import TrainConfig
from pipert.train.data import Batches
from pipert.train.model import DTYPES, build_stage, loss_fn, main_grad_dtype
from pipert.train.plans import tied_parameters
from pipert.train.text import load_text


class ReferenceModel:
    """Computes the losses and gradients of a step by plain autograd, from the batches that the pipeline gets.

    Attributes:
        modules: by (rank, stage), with both ends of the model.
    """

    def __init__(self, config: TrainConfig, plan: Plan, device: torch.device) -> None:
        dtype = DTYPES[config.dtype]
        self._config = config
        self._plan = plan
        self._tied = tied_parameters(config.model, plan.num_stages)
        self._main_grad_dtype = main_grad_dtype(dtype)
        self.modules = {
            (rank, stage): build_stage(
                config.model, plan.num_stages, stage, seed=config.seed, dtype=dtype, device=device
            )
            for rank, stage in replicas(plan, range(plan.num_ranks))
        }
        num_sequences = config.batch_size * plan.num_microbatches
        self._batches = Batches(load_text(config.data), num_sequences, config.model.seq_len, config.seed, device)

    def step(self, step: int) -> ReferenceResult:
        """Add the gradients of step ``step``, clipped."""
        inputs, targets = self._batches(step)
        return reference_step(
            self._plan,
            self.modules,
            inputs,
            targets,
            loss_fn,
            seed=self._config.seed,
            step=step,
            tied=self._tied,
            clip_norm=self._config.clip,
            main_grad_dtype=self._main_grad_dtype,
        )
