"""The losses of a step, brought together where replicas of the last stage have computed a part of them each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipert.exchange import exchange
from pipert.numerics import MicrobatchLoss
from pipert.rendezvous import Group

if TYPE_CHECKING:
    from pipert.plan import Plan

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
_NONE = -1.0


def share_losses(
    plan: Plan, losses: Sequence[MicrobatchLoss | None], rank: int, group: Group
) -> list[MicrobatchLoss | None]:
    """Complete the losses of ``rank`` with those of the other holders of the last stage, all of which call this.

    Each travels as (value, its type, count, its type) in double precision, which holds them all.
    """
    last = plan.num_stages - 1
    owners = [plan.rank_of_stage(last, microbatch) for microbatch in range(plan.num_microbatches)]
    rows = {holder: torch.full((owners.count(holder), 4), _NONE, dtype=torch.float64) for holder in plan.holders(last)}
    mine = [loss for loss in losses if loss is not None]
    for row, loss in zip(rows[rank], mine, strict=False):  # without a loss function there are none
        row[0], row[1], row[2], row[3] = loss.value, _code(loss.value), loss.count, _code(loss.count)
    others = [holder for holder in rows if holder != rank]
    exchange(group, dict.fromkeys(others, rows[rank]), {other: rows[other] for other in others})
    arriving = {other: map(_loss, rows[other].tolist()) for other in others}
    complete = [loss if owner == rank else next(arriving[owner]) for owner, loss in zip(owners, losses, strict=True)]
    device = next((loss.value.device for loss in mine), torch.device("cpu"))
    return [None if loss is None else _on(device, loss) for loss in complete]


def _on(device: torch.device, loss: MicrobatchLoss) -> MicrobatchLoss:
    value = loss.value.to(device)
    return MicrobatchLoss(value, value, value, loss.count.to(device))


def _code(value: Tensor) -> int:
    return _DTYPES.index(value.dtype)


def _loss(row: Sequence[float]) -> MicrobatchLoss | None:
    value, value_type, count, count_type = row
    if value_type == _NONE:
        return None
    loss = torch.tensor(value, dtype=_DTYPES[int(value_type)])
    return MicrobatchLoss(loss, loss, loss, torch.tensor(count, dtype=_DTYPES[int(count_type)]))
