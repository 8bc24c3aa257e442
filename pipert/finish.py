"""The end of a step: copies of one parameter summed, the gradients averaged and clipped, the optimizer's step.

Across processes only the end of a step uses the process group. All arithmetic is that of
:mod:`pipert.numerics`, in the order that the reference has, so that the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipert.copies import CopySums, about, check_alike
from pipert.errors import ConfigError, PipertError
from pipert.exchange import talking
from pipert.numerics import (
    Copy,
    Tie,
    clip_coefficient,
    clip_gradients,
    divide_gradients,
    global_norm,
    gradient_norm,
    model_parameters,
)
from pipert.rendezvous import Group, gather
from pipert.replicas import Replica


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
        holders: per stage, the ranks that hold it, ascending.
        modules: the modules of this process's stages. What belongs to no stage follows the last of them.
        rank: this process's rank; None if all ranks live in it.
        group: the ranks' process group; None if all ranks live in this process.
        tied: copies of one parameter, as (stage, name) each.
        optimizer: steps over this process's parameters; None leaves the gradients to the caller.
        clip_norm: the largest global norm; needs an optimizer.
        counting_rank: the rank that knows the number of tokens.

    Raises:
        ConfigError: ``tied`` names a parameter that is not there, or twice, or one tensor twice; ``clip_norm`` is not
            positive, or there is no optimizer to clip for.
    """

    def __init__(
        self,
        holders: Sequence[Sequence[int]],
        modules: Mapping[Replica, nn.Module],
        rank: int | None,
        group: Group | None,
        *,
        tied: Iterable[Tie] = (),
        optimizer: Optimizer | None = None,
        clip_norm: float | None = None,
        counting_rank: int,
    ) -> None:
        self._counting_rank = counting_rank
        self._holders = holders
        self._modules = modules
        self._rank = rank
        self._group = group
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._here: dict[Copy, nn.Parameter] = {
            Copy(rank, stage, name): parameter
            for rank, stage in sorted(modules)
            for name, parameter in modules[rank, stage].named_parameters()
            if parameter.requires_grad
        }
        self._parameters: list[tuple[Copy, ...]] = []
        self._sum_copies = CopySums((), {}, rank, group)
        self._tied = [tuple(tie) for tie in tied]
        self._check()

    @property
    def steps_optimizer(self) -> bool:
        """Whether the end of a step steps an optimizer."""
        return self._optimizer is not None

    @property
    def judges(self) -> bool:
        """Whether the end of a step looks at what was computed: it steps an optimizer, or meets other processes."""
        return self.steps_optimizer or self._group is not None

    def connect(self) -> None:
        """Learn which parameters the other ranks have. Collective; before the first :meth:`__call__`.

        Raises:
            ConfigError: copies of one parameter differ.
        """
        stages = [
            (rank, stage, about(module, has_replicas=len(self._holders[stage]) > 1))
            for (rank, stage), module in sorted(self._modules.items())
        ]
        if self._group is not None:
            stages = [stage for peer in gather(self._group, stages) for stage in peer]
        described = {(rank, stage): parameters for rank, stage, parameters in stages}
        names = {
            replica: [name for name, (_, trains, _) in parameters.items() if trains]
            for replica, parameters in described.items()
        }
        self._parameters = model_parameters(names, self._tied)
        check_alike(described, self._parameters)
        self._sum_copies = CopySums(self._parameters, self._here, self._rank, self._group)

    def __call__(self, step: int, num_tokens: Tensor | None, per_token: bool) -> Tensor | None:
        """End step ``step``. Collective.

        Args:
            step: its number, for messages.
            num_tokens: of all the microbatches since the last call, on ranks that know it.
            per_token: whether the loss is averaged over tokens, so that gradients are divided by their number.

        Returns:
            The global norm before clipping; None without an optimizer.

        Raises:
            PipertError: the norm is not finite; no parameter was changed.
            TransportError: the process group failed.
        """
        parameters = list(self._here.values())
        with talking(self._rank, step):
            self._sum_copies()
            if per_token:
                divide_gradients(parameters, self._share_num_tokens(num_tokens))
            if self._optimizer is None:
                return None
            norm = global_norm(self._norms())
        self.apply(step, norm)
        return norm

    def apply(self, step: int, norm: Tensor) -> None:
        """Clip by the global ``norm``, step the optimizer, drop the gradients.

        Raises:
            PipertError: the norm is not finite; no parameter was changed.
        """
        assert self._optimizer is not None
        if not torch.isfinite(norm):
            raise PipertError(f"step {step}: the gradient norm is {norm.item()}; no parameter was changed", step=step)
        if self._clip_norm is not None:
            clip_gradients(self.parameters(), clip_coefficient(norm, self._clip_norm))
        self._optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Drop the gradients of this process's parameters."""
        assert self._optimizer is not None
        self._optimizer.zero_grad()
        for parameter in self._here.values():
            if getattr(parameter, "main_grad", None) is not None:
                parameter.main_grad = None  # type: ignore[attr-defined]

    def needs_no_clipping(self, norm: Tensor) -> bool:
        """Whether ``norm`` is finite and leaves the gradients as they are."""
        coefficient = 1.0 if self._clip_norm is None else clip_coefficient(norm, self._clip_norm)
        return bool(torch.isfinite(norm)) and float(coefficient) == 1.0

    def parameters(self) -> list[nn.Parameter]:
        """List this process's parameters that require grad."""
        return list(self._here.values())

    def here(self, norm: Tensor) -> Tensor:
        """Return ``norm`` where this process's parameters are: the arithmetic of a device is its own."""
        return norm.to(next((parameter.device for parameter in self._here.values()), norm.device))

    def norms_of(self, rank: int) -> list[Tensor]:
        """Return the norms of the parameters of ``rank``, which is here, in model order; there are no copies."""
        return [gradient_norm(self._here[copy]) for (copy,) in self._parameters if copy.rank == rank]

    def norm_of_model(self, norms: Sequence[Tensor]) -> Tensor:
        """Return the global norm, given those of :meth:`norms_of` rank by rank."""
        by_rank = sorted(range(len(self._parameters)), key=lambda index: self._parameters[index][0].rank)
        in_model_order = dict(zip(by_rank, norms, strict=True))
        return global_norm([in_model_order[index] for index in range(len(norms))])

    def _check(self) -> None:
        members = [member for tie in self._tied for member in tie]
        for stage, name in members:
            if not 0 <= stage < len(self._holders):
                raise ConfigError(f"tied: there is no stage {stage}; the plan has {len(self._holders)}")
            for rank in self._holders[stage]:
                if (rank, stage) in self._modules and (rank, stage, name) not in self._here:
                    raise ConfigError(f"tied: stage {stage} has no parameter {name!r} that requires grad")
            if members.count((stage, name)) > 1:
                raise ConfigError(f"tied: {name!r} of stage {stage} is named more than once")
        here = [id(parameter) for (_, stage, name), parameter in self._here.items() if (stage, name) in members]
        if len(set(here)) < len(here):
            raise ConfigError(f"tied: {self._tied} name one tensor more than once; each stage needs its own copy")
        if self._clip_norm is not None and not self._clip_norm > 0:
            raise ConfigError(f"clip_norm must be positive, not {self._clip_norm}")
        if self._clip_norm is not None and self._optimizer is None:
            raise ConfigError("clip_norm needs an optimizer")

    def _share_num_tokens(self, num_tokens: Tensor | None) -> int:
        count = torch.zeros(1, dtype=torch.int64)
        if num_tokens is not None:
            count[0] = num_tokens
        if self._group is not None:
            dist.broadcast(count, group=self._group, group_src=self._counting_rank)
        return int(count)

    def _norms(self) -> list[Tensor]:
        """Return the norm of each parameter of the model, computed where its first copy is."""
        first_copies = [copies[0] for copies in self._parameters]
        here = {copy: gradient_norm(self._here[copy]) for copy in first_copies if copy in self._here}
        if self._group is None:
            return [here[copy] for copy in first_copies]
        owners = [copy.rank for copy in first_copies]
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
        return [iter(self.here(row[0] if row[1] else row[0].float()) for row in part) for part in parts]
