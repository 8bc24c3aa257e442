"""The end of a step: copies of one parameter summed, the gradients averaged and clipped, the optimizer's step.

Across processes this is the only part of a step that uses the process group. All arithmetic is that of
:mod:`pipert.numerics`, in the order that the reference has, so that the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.errors import ConfigError, PipertError, TransportError
from pipert.numerics import (
    Copy,
    Tie,
    clip_coefficient,
    clip_gradients,
    divide_gradients,
    global_norm,
    gradient_norm,
    gradient_of,
    model_order,
    sum_tied,
    tied_in_rank_order,
)
from pipert.rendezvous import Group, gather

_GRAD_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_ABSENT = -1


class Optimizer(Protocol):
    """What is used of an optimizer: a :class:`torch.optim.Optimizer`, or one that steps along ``main_grad``."""

    def step(self) -> object:
        """Change the parameters."""
        ...

    def zero_grad(self) -> None:
        """Drop the gradients."""
        ...


class Finish:
    """Ends the steps of one process.

    Args:
        stage_ranks: the rank of each stage.
        modules: the modules of this process's stages.
        rank: this process's rank; None if all ranks live in it.
        group: the ranks' process group; None if all ranks live in this process.
        tied: copies of one parameter, as (stage, name) each.
        optimizer: steps over this process's parameters; None leaves the gradients to the caller.
        clip_norm: the largest global norm; needs an optimizer.

    Raises:
        ConfigError: ``tied`` names a parameter that is not there, or one tensor twice; ``clip_norm`` is not positive,
            or there is no optimizer to clip for.
    """

    def __init__(
        self,
        stage_ranks: Sequence[int],
        modules: Mapping[int, nn.Module],
        rank: int | None,
        group: Group | None,
        *,
        tied: Iterable[Tie] = (),
        optimizer: Optimizer | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self._stage_ranks = stage_ranks
        self._rank = rank
        self._group = group
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._parameters: dict[Copy, nn.Parameter] = {
            (stage, name): parameter
            for stage in sorted(modules)
            for name, parameter in modules[stage].named_parameters()
            if parameter.requires_grad
        }
        self._norm_order: list[Copy] = []
        tied = [tuple(tie) for tie in tied]
        self._check(tied)
        self._ties = [tied_in_rank_order(tie, stage_ranks) for tie in tied]

    def connect(self) -> None:
        """Learn which parameters the other ranks have. Collective; before the first :meth:`__call__`."""
        names: dict[int, list[str]] = {}
        for stage, name in self._parameters:
            names.setdefault(stage, []).append(name)
        if self._group is not None:
            for peer in gather(self._group, sorted(names.items())):
                names.update(dict(peer))
        self._norm_order = model_order(names, self._ties)

    def __call__(self, step: int, num_tokens: Tensor | None, per_token: bool) -> Tensor | None:
        """End step ``step``. Collective.

        Args:
            step: its number, for messages.
            num_tokens: of all the microbatches since the last call, on the rank that knows it.
            per_token: whether the loss is averaged over tokens, so that gradients are divided by their number.

        Returns:
            The global norm before clipping; None without an optimizer.

        Raises:
            PipertError: the norm is not finite; no parameter was changed.
            TransportError: the process group failed.
        """
        parameters = list({id(parameter): parameter for parameter in self._parameters.values()}.values())
        with self._talking(step):
            for tie in self._ties:
                self._sum(tie)
            if per_token:
                divide_gradients(parameters, self._share_num_tokens(num_tokens))
            if self._optimizer is None:
                return None
            norm = global_norm(self._norms())
        if not torch.isfinite(norm):
            raise PipertError(f"step {step}: the gradient norm is {norm.item()}; no parameter was changed", step=step)
        if self._clip_norm is not None:
            clip_gradients(parameters, clip_coefficient(norm, self._clip_norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        for parameter in parameters:
            if getattr(parameter, "main_grad", None) is not None:
                parameter.main_grad = None  # type: ignore[attr-defined]
        return norm

    @contextmanager
    def _talking(self, step: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TransportError(
                f"rank {self._rank}: the process group failed at the end of step {step}: {error}",
                rank=self._rank,
                step=step,
            ) from error

    def _check(self, tied: Sequence[Tie]) -> None:
        for tie in tied:
            for stage, name in tie:
                if not 0 <= stage < len(self._stage_ranks):
                    raise ConfigError(f"tied: there is no stage {stage}; the plan has {len(self._stage_ranks)}")
                if self._is_here(stage) and (stage, name) not in self._parameters:
                    raise ConfigError(f"tied: stage {stage} has no parameter {name!r} that requires grad")
            here = [id(self._parameters[copy]) for copy in tie if self._is_here(copy[0])]
            if len(set(here)) < len(here):
                raise ConfigError(f"tied: {tie} name one tensor more than once; each stage needs its own copy")
        if self._clip_norm is not None and not self._clip_norm > 0:
            raise ConfigError(f"clip_norm must be positive, not {self._clip_norm}")
        if self._clip_norm is not None and self._optimizer is None:
            raise ConfigError("clip_norm needs an optimizer")

    def _is_here(self, stage: int) -> bool:
        return self._rank is None or self._stage_ranks[stage] == self._rank

    def _share_num_tokens(self, num_tokens: Tensor | None) -> int:
        count = torch.zeros(1, dtype=torch.int64) if num_tokens is None else num_tokens.reshape(1).to(torch.int64)
        if self._group is not None:
            dist.broadcast(count, group=self._group, group_src=self._stage_ranks[-1])
        return int(count)

    # Norms

    def _norms(self) -> list[Tensor]:
        here = {copy: gradient_norm(self._parameters[copy]) for copy in self._norm_order if self._is_here(copy[0])}
        if self._group is None:
            return [here[copy] for copy in self._norm_order]
        owners = [self._stage_ranks[stage] for stage, _ in self._norm_order]
        rows = self._gather_rows(list(here.values()), max(map(owners.count, set(owners)), default=0))
        return [next(rows[owner]) for owner in owners]

    def _gather_rows(self, norms: list[Tensor], num_rows: int) -> list[Iterator[Tensor]]:
        """Send every rank's norms to every rank, each as its value and whether it is in double precision."""
        assert self._group is not None
        mine = torch.zeros(num_rows, 2, dtype=torch.float64)
        for row, norm in zip(mine, norms, strict=False):
            row[0], row[1] = norm.double(), norm.dtype == torch.float64
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, mine, group=self._group)
        return [iter(row[0] if row[1] else row[0].float() for row in part) for part in parts]

    # Tied parameters

    def _sum(self, tie: Sequence[Copy]) -> None:
        owners = [self._stage_ranks[stage] for stage, _ in tie]
        here = [self._parameters[copy] for copy in tie if self._is_here(copy[0])]
        if not here:
            return
        if len(here) == len(tie):
            total = sum_tied(map(gradient_of, here))
        elif owners[0] == self._rank:
            total = self._sum_at_root(tie, here[0])
            for owner in sorted({*owners} - {owners[0]}):
                self._send(total, owner)
        else:
            for parameter in here:
                self._send(gradient_of(parameter), owners[0])
            total = self._receive(here[0], owners[0])
        if total is not None:
            for parameter in here:
                _set_gradient(parameter, total)

    def _sum_at_root(self, tie: Sequence[Copy], like: Tensor) -> Tensor | None:
        return sum_tied(
            gradient_of(self._parameters[copy])
            if self._is_here(copy[0])
            else self._receive(like, self._stage_ranks[copy[0]])
            for copy in tie
        )

    def _send(self, gradient: Tensor | None, to: int) -> None:
        code = _ABSENT if gradient is None else _GRAD_DTYPES.index(gradient.dtype)
        dist.send(torch.tensor([code]), group=self._group, group_dst=to)
        if gradient is not None:
            dist.send(gradient.contiguous(), group=self._group, group_dst=to)

    def _receive(self, like: Tensor, source: int) -> Tensor | None:
        code = torch.zeros(1, dtype=torch.int64)
        dist.recv(code, group=self._group, group_src=source)
        if code == _ABSENT:
            return None
        gradient = torch.empty(like.shape, dtype=_GRAD_DTYPES[int(code)])
        dist.recv(gradient, group=self._group, group_src=source)
        return gradient


def _set_gradient(parameter: nn.Parameter, total: Tensor) -> None:
    gradient = gradient_of(parameter)
    if gradient is not None:
        gradient.copy_(total)
    elif hasattr(parameter, "main_grad"):
        parameter.main_grad = total.clone()
    else:
        parameter.grad = total.clone()
