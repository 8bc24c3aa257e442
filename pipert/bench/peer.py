"""torch.distributed.pipelining: the peer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed import pipelining

SINGLE_STAGE = {"1f1b": pipelining.Schedule1F1B}
MULTI_STAGE = {
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zb-v": pipelining.ScheduleZBVZeroBubble,
}

_CPU = torch.device("cpu")


class PeerPipeline:
    """The peer's runtime on this rank, with gradients left in the modules, as ``pipert.Engine`` leaves them."""

    def __init__(
        self,
        schedule: str,
        stages: Mapping[int, nn.Module],
        num_stages: int,
        num_microbatches: int,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        device: torch.device = _CPU,
    ) -> None:
        logging.getLogger("torch.distributed.pipelining").setLevel(logging.ERROR)
        built: list[pipelining.stage._PipelineStageBase] = [
            pipelining.PipelineStage(module, stage, num_stages, device) for stage, module in stages.items()
        ]
        self._has_last = num_stages - 1 in stages
        self._schedule: pipelining.schedules._PipelineSchedule
        if schedule in SINGLE_STAGE:
            self._schedule = SINGLE_STAGE[schedule](built[0], num_microbatches, loss_fn=loss_fn, scale_grads=False)
        else:
            self._schedule = MULTI_STAGE[schedule](built, num_microbatches, loss_fn=loss_fn, scale_grads=False)

    def step(self, inputs: Tensor | None, targets: Tensor | None) -> list[Tensor] | None:
        """Run one step; return the microbatches' losses on the rank of the last stage."""
        losses: list[Tensor] | None = [] if self._has_last else None
        arguments = () if inputs is None else (inputs,)
        self._schedule.step(*arguments, target=targets, losses=losses, return_outputs=False)
        return losses
