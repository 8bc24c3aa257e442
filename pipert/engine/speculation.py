"""The optimizer's step before all ranks are done, made up for in the next step where it should have been another.

Qi et al., "Zero Bubble Pipeline Parallelism", section 4, arXiv 2401.10241; here what is undone comes back from saved
copies, so that the result is that of :class:`pipert.finish.Finish` to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipert.errors import ConfigError, PipertError
from pipert.numerics import global_norm
from pipert.ops import OpKind
from pipert.rendezvous import Group

if TYPE_CHECKING:
    from pipert.engine.ports import Sink, Source
    from pipert.finish import Finish


@dataclass(frozen=True, slots=True)
class RankPorts:
    """Where a rank's gradient norms come from and go to; None at the first and the last rank."""

    norms_in: Source | None
    norms_out: Sink | None
    total_in: Source | None
    total_out: Sink | None


class Speculation:
    """What the NORM, OPT, VALIDATE and ROLLBACK ops of a process's ranks do.

    A step that is rolled back makes the step after it *void*, on every rank alike: forwards have used the wrong
    parameters. Its ops then compute nothing and hand on empty messages, and the engine runs that step again.

    Args:
        finish: the parameters and the arithmetic of the end of a step.
        optimizer: that of ``finish``.
        ranks: those of this process.
        num_ranks: of the plan.

    Attributes:
        void: the step that is running is to be run again.
        failure: why no later step makes sense: the norm was not finite.
    """

    def __init__(
        self, finish: Finish, optimizer: torch.optim.Optimizer, ranks: tuple[int, ...], num_ranks: int
    ) -> None:
        self.void = False
        self.failure: PipertError | None = None
        self._finish = finish
        self._optimizer = optimizer
        self._ranks = ranks
        self._last_rank = num_ranks - 1
        self._norms: list[Tensor] = []  # of the ranks up to the last one here
        self._total: Tensor | None = None  # over all ranks, of the step before; None until it is known
        self._saved: _Saved | None = None  # of a step that is to be judged
        self._stepped = False
        self._step = 0

    @property
    def pending(self) -> bool:
        """Whether the optimizer's last step is still to be judged."""
        return self._saved is not None

    def start(self, step: int) -> None:
        """Begin an attempt at a step."""
        self._step = step
        self.void = False

    def handler(self, kind: OpKind, rank: int, ports: RankPorts) -> Callable[[int], None]:
        """Return the function that the executor calls for an op of this kind."""
        if kind is OpKind.NORM:
            return lambda _: self._norm(rank, ports)
        if kind is OpKind.OPT:
            return lambda _: self._opt(rank)
        if kind is OpKind.VALIDATE:
            return lambda _: self._validate(ports)
        return lambda _: self.judge()

    def settle(self, total: Tensor | None) -> Tensor | None:
        """Judge the last step outside of a step, by its ``total`` norm; return that norm."""
        self._total = total
        self.judge()
        self.void = False
        return total

    @property
    def total(self) -> Tensor | None:
        """The norm over all ranks of the step that is to be judged, where it is known."""
        return self._total

    def judge(self) -> None:
        """Keep the last step if it is what the norm over all ranks asks for, else undo it and take the right one."""
        saved, total = self._saved, self._total
        if saved is None:
            return
        assert total is not None
        self._saved = self._total = None
        if self._stepped and self._finish.needs_no_clipping(total):
            self._finish.drop_gradients()
            return
        self.void = True
        saved.restore()
        try:
            with saved.hyperparameters():
                self._finish.apply(saved.step, total)
        except PipertError as error:
            self.failure = error

    def _norm(self, rank: int, ports: RankPorts) -> None:
        before = ports.norms_in.take(0) if ports.norms_in else ()
        if self.void:
            message: tuple[Tensor, ...] = ()
        else:
            mine = self._finish.norms_of(rank)
            self._norms = [norm.clone() for norm in before if norm is not None] + mine
            message = tuple(self._norms)
        if ports.norms_out is not None:
            ports.norms_out.give(0, message)

    def _opt(self, rank: int) -> None:
        """Step, if nothing known by now speaks against it; once for all ranks of the process."""
        if self.void or rank != self._ranks[-1]:
            return
        if rank == self._last_rank:
            self._total = self._finish.norm_of_model(self._norms)
        self._saved = _Saved(self._finish.parameters(), self._optimizer, self._step)
        self._stepped = self._finish.needs_no_clipping(global_norm(self._norms))
        if self._stepped:
            self._optimizer.step()

    def _validate(self, ports: RankPorts) -> None:
        if ports.total_in is not None:
            received = [total for total in ports.total_in.take(0) if total is not None]
            self._total = received[0].clone() if received else None
        if ports.total_out is not None:
            ports.total_out.give(0, () if self._total is None else (self._total,))


class _Saved:
    """Parameters and optimizer as they were before a step."""

    def __init__(self, tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
        self.step = step
        self._optimizer = optimizer
        masters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._tensors = {id(tensor): (tensor, tensor.detach().clone()) for tensor in [*tensors, *masters]}
        self._state = {
            parameter: {name: _copy(value) for name, value in state.items()}
            for parameter, state in optimizer.state.items()
        }
        self._groups = [_without_parameters(group) for group in optimizer.param_groups]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back where it was."""
        for tensor, copy in self._tensors.values():
            tensor.copy_(copy)
        state = self._optimizer.state
        for parameter in [parameter for parameter in state if parameter not in self._state]:
            del state[parameter]
        for parameter, values in self._state.items():
            state[parameter].update(values)

    @contextmanager
    def hyperparameters(self) -> Iterator[None]:
        """Let the optimizer have the learning rate (and so on) that it had at the step."""
        now = [_without_parameters(group) for group in self._optimizer.param_groups]
        _update(self._optimizer, self._groups)
        try:
            yield
        finally:
            _update(self._optimizer, now)


def check_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """Return an optimizer whose step can be undone.

    Raises:
        ConfigError: there is none, or its state cannot be seen.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = "no optimizer" if optimizer is None else f"a {type(optimizer).__name__}"
        raise ConfigError(f"post-validation undoes steps of a torch.optim.Optimizer; this engine has {what}")
    return optimizer


def share_total(total: Tensor | None, rank: int, num_ranks: int, group: Group) -> Tensor:
    """Give every rank the norm that the last one knows. Collective."""
    message = torch.zeros(2, dtype=torch.float64)
    if rank == num_ranks - 1:
        assert total is not None
        message[0], message[1] = total.double(), total.dtype == torch.float64
    dist.broadcast(message, group=group, group_src=num_ranks - 1)
    return message[0] if message[1] else message[0].float()


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _update(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.update(values)
