"""The arithmetic that an engine and the reference must do alike, to the bit.

How a batch is cut into microbatches, how random numbers are seeded, how losses are averaged, how copies of one
parameter are summed, and how gradients are clipped. Whoever needs one of these calls it here and nowhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipert.errors import ConfigError
from pipert.replicas import Replica

LossReduction = Literal["microbatch", "token"]
Tie = Sequence[tuple[int, str]]
"""Copies, on several stages, of one parameter: (stage, its name in the stage's module) each."""


class Copy(NamedTuple):
    """A parameter where it stands; the order of copies is that in which their gradients are summed.

    Attributes:
        rank: the rank.
        stage: the stage.
        name: its name in the stage's module.
    """

    rank: int
    stage: int
    name: str


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


# Random numbers


def op_seed(seed: int, step: int, stage: int, microbatch: int) -> int:
    """Return the seed under which the forward of (``stage``, ``microbatch``) draws its random numbers in ``step``.

    All four numbers are at least 0. The result is in [0, 2**64); its low 32 bits, all that torch's CPU generator uses,
    are as well mixed as the others (SplitMix64: Steele, Lea and Flood, 2014).
    """
    return _mix(_step_seed(seed, step) + ((stage << 32) + microbatch + 1) * _GOLDEN)


def seed_op(seed: int, step: int, stage: int, microbatch: int) -> None:
    """Seed torch's default generators for the forward of (``stage``, ``microbatch``), and of its loss.

    They are the CPU's and, where CUDA is in use, the current device's; while a stream is captured that one is left
    alone, because the graph's launches draw from it.
    """
    number = op_seed(seed, step, stage, microbatch)
    torch.default_generator.manual_seed(number)
    for generator in _device_generators():
        generator.manual_seed(number)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Give torch's default generators, those of :func:`seed_op`, their state back at the end."""
    generators = [torch.default_generator, *_device_generators()]
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _device_generators() -> tuple[torch.Generator, ...]:
    generators = torch.cuda.default_generators  # none before CUDA is in use
    if not generators or torch.cuda.is_current_stream_capturing():
        return ()
    return (generators[torch.cuda.current_device()],)


@functools.lru_cache(maxsize=8)
def _step_seed(seed: int, step: int) -> int:
    return _mix(_mix(seed + _GOLDEN) + (step + 1) * _GOLDEN)


def _mix(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


# Microbatches


def split_microbatches(batch: Any, num_microbatches: int) -> list[Any]:
    """Cut a batch into ``num_microbatches`` microbatches.

    Args:
        batch: a tensor ``[N, ...]``, cut on dimension 0 into pieces whose sizes differ by at most one, the larger
            first; a tuple of such tensors, each cut so; a list of ready microbatches (a tensor or a tuple of tensors
            each, of any sizes); or None.
        num_microbatches: at least 1.

    Returns:
        One entry per microbatch: a tensor, a tuple of tensors, whatever the list held, or None.

    Raises:
        ConfigError: the list has another length, or a tensor has fewer rows than there are microbatches.
    """
    if batch is None:
        return [None] * num_microbatches
    if isinstance(batch, Tensor):
        return _split_tensor(batch, num_microbatches)
    if isinstance(batch, list):
        if len(batch) != num_microbatches:
            raise ConfigError(f"the plan has {num_microbatches} microbatches, the list {len(batch)}")
        return list(batch)
    if isinstance(batch, tuple) and batch and all(isinstance(part, Tensor) for part in batch):
        return list(zip(*(_split_tensor(part, num_microbatches) for part in batch), strict=True))
    raise ConfigError(f"a batch is a tensor, a tuple of tensors, a list of microbatches or None, not {_kind(batch)}")


def as_tensors(value: Any) -> tuple[Tensor, ...]:
    """Make a tuple of a microbatch, or of what a module returned: one tensor, several, or none for None.

    Raises:
        ConfigError: there is something else than tensors in it.
    """
    if isinstance(value, Tensor):
        return (value,)
    if value is None:
        return ()
    if isinstance(value, (tuple, list)) and all(isinstance(part, Tensor) for part in value):
        return tuple(value)
    raise ConfigError(f"expected a tensor or a tuple of tensors, got {_kind(value)}")


def _split_tensor(batch: Tensor, num_microbatches: int) -> list[Tensor]:
    num_rows = batch.shape[0] if batch.dim() else 0
    if num_rows < num_microbatches:
        raise ConfigError(f"{num_rows} rows cannot be cut into {num_microbatches} microbatches")
    return list(torch.tensor_split(batch, num_microbatches))


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(sorted({type(part).__name__ for part in value})) or 'nothing'}"
    return f"a {type(value).__name__}"


# Losses


@dataclass(frozen=True, slots=True)
class MicrobatchLoss:
    """The loss of one microbatch.

    Attributes:
        root: where the backward starts; a scalar.
        root_grad: the gradient it starts with; a scalar.
        value: the loss (``"microbatch"``) or the sum over its tokens (``"token"``), detached.
        count: the number of its tokens, a scalar; 1 for ``"microbatch"``.
    """

    root: Tensor
    root_grad: Tensor
    value: Tensor
    count: Tensor


def microbatch_loss(
    loss_fn: Callable[..., Any],
    outputs: Sequence[Tensor],
    target: Any,
    reduction: LossReduction,
    num_microbatches: int,
) -> MicrobatchLoss:
    """Call ``loss_fn(output, target)`` on the last stage's outputs (the tuple of them where there are several).

    With ``reduction="microbatch"`` it returns the loss, a scalar, and the gradient is that of the mean over the
    microbatches. With ``"token"`` it returns (sum, count): the gradient is that of the sum alone, because the number of
    tokens of the later microbatches is not known yet; :func:`divide_gradients` does the rest at the end of the step.

    Raises:
        ConfigError: ``loss_fn`` returned something else.
    """
    result = loss_fn(outputs[0] if len(outputs) == 1 else tuple(outputs), target)
    if reduction == "microbatch":
        loss = _scalar(result, "loss_fn must return a scalar tensor, the loss")
        root_grad = _mean_grad(num_microbatches, loss.dtype, loss.device)
        return MicrobatchLoss(loss, root_grad, loss.detach(), _one(torch.int64, loss.device))
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ConfigError(f"loss_fn must return (sum, count) with loss_reduction='token', it returned {_kind(result)}")
    loss = _scalar(result[0], "loss_fn's sum must be a scalar tensor")
    count = torch.as_tensor(result[1], device=loss.device).detach()
    return MicrobatchLoss(loss, _one(loss.dtype, loss.device), loss.detach(), count)


def check_reduction(reduction: str) -> LossReduction:
    """``reduction`` itself, if it is one.

    Raises:
        ConfigError: it is not.
    """
    if reduction not in ("microbatch", "token"):
        raise ConfigError(f"loss_reduction is 'microbatch' or 'token', not {reduction!r}")
    return reduction  # type: ignore[return-value]


def total_loss(losses: Sequence[MicrobatchLoss]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of the step, the loss of each microbatch ``[num_microbatches]``, and the number of tokens.

    ``losses`` are in ascending microbatch order. The loss is the mean over microbatches, or over all tokens; both
    are Σ value / Σ count, where no tokens at all count as one.
    """
    values = torch.stack([loss.value for loss in losses])
    counts = torch.stack([loss.count for loss in losses])
    count = counts.sum()
    return values.sum() / count.clamp(min=1), values / counts.clamp(min=1), count


def divide_gradients(parameters: Iterable[Tensor], num_tokens: Tensor | int) -> None:
    """Divide the gradients of the step by its number of tokens, in place (``loss_reduction="token"``)."""
    divisor = max(1, int(num_tokens))
    for parameter in parameters:
        gradient = gradient_of(parameter)
        if gradient is not None:
            gradient.div_(divisor)


def _scalar(value: Any, message: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else _kind(value)
        raise ConfigError(f"{message}; it was {got}")
    return value if value.dim() == 0 else value.reshape(())


@functools.lru_cache(maxsize=32)
def _mean_grad(num_microbatches: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _one(dtype, device) / num_microbatches  # a tensor's division: what (loss / m).backward() computes


@functools.lru_cache(maxsize=32)
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((), dtype=dtype, device=device)


# Gradients at the end of a step


def gradient_of(parameter: Tensor) -> Tensor | None:
    """Return the accumulated gradient of a parameter: its ``main_grad`` where it has one, else its ``grad``."""
    main_grad: Tensor | None = getattr(parameter, "main_grad", None)
    return parameter.grad if main_grad is None else main_grad


def add_to_main_grad(parameter: Tensor, dtype: torch.dtype) -> None:
    """Add a parameter's ``grad`` to its ``main_grad`` (made with ``dtype`` where it is missing), and drop ``grad``."""
    gradient = parameter.grad
    if gradient is None:
        return
    main_grad: Tensor | None = getattr(parameter, "main_grad", None)
    if main_grad is None:
        parameter.main_grad = gradient.to(dtype, copy=True)  # type: ignore[attr-defined]
    else:
        main_grad.add_(gradient)
    parameter.grad = None


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Drop ``grad`` and ``main_grad``."""
    for parameter in parameters:
        parameter.grad = None
        if getattr(parameter, "main_grad", None) is not None:
            parameter.main_grad = None  # type: ignore[attr-defined]


def model_parameters(names: Mapping[Replica, Iterable[str]], tied: Iterable[Tie] = ()) -> list[tuple[Copy, ...]]:
    """List the parameters of the model, each once, as all of its copies.

    Copies are made by ties and by replicas: of a tied parameter, those on every rank that holds one of its stages.

    Args:
        names: per replica, the names of the parameters that require grad, as ``named_parameters`` gives them.
        tied: the ties; each may name a parameter that no other names.

    Returns:
        The parameters in model order, that of the global norm: by their lowest stage, then as its module names them.
        The copies of each in the order in which their gradients are summed: by rank, then by stage.
    """
    tie_of = {member: tuple(sorted(tie)) for tie in tied for member in tie}
    copies: dict[tuple[tuple[int, str], ...], list[Copy]] = {}
    for rank, stage in sorted(names, key=lambda replica: replica[::-1]):
        for name in names[rank, stage]:
            members = tie_of.get((stage, name), ((stage, name),))
            copies.setdefault(members, []).append(Copy(rank, stage, name))
    return [tuple(sorted(each)) for each in copies.values()]


def sum_copies(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """Sum the gradients of one parameter's copies in the given order into new memory; None where no copy has one."""
    total: Tensor | None = None
    for gradient in gradients:
        if gradient is not None:
            total = gradient.clone() if total is None else total.add_(gradient)
    return total


def set_gradient(parameter: Tensor, total: Tensor) -> None:
    """Give a copy of a parameter the sum of all copies' gradients, where it has its own."""
    gradient = gradient_of(parameter)
    if gradient is not None:
        gradient.copy_(total)
    elif hasattr(parameter, "main_grad") or total.dtype != parameter.dtype:
        parameter.main_grad = total.clone()  # type: ignore[attr-defined]
    else:
        parameter.grad = total.clone()


def gradient_norm(parameter: Tensor) -> Tensor:
    """Return the 2-norm of one parameter's gradient; 0 where it has none. Scalar, fp32 at least."""
    gradient = gradient_of(parameter)
    if gradient is None:
        return torch.zeros((), device=parameter.device)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=dtype)
    return norm


def global_norm(norms: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm over all parameters, from each one's norm in the order of :func:`model_parameters`; scalar.

    The same bits as :func:`torch.nn.utils.clip_grad_norm_` computes from the same gradients.
    """
    if not norms:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return norm


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """Return what every gradient is multiplied with so that the global norm is at most ``max_norm``; never above 1."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def clip_gradients(parameters: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply the gradients with the :func:`clip_coefficient`, in place."""
    for parameter in parameters:
        gradient = gradient_of(parameter)
        if gradient is not None:
            gradient.mul_(coefficient)
