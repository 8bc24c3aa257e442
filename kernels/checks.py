"""What is wrong with the tensors that an output layer or an embedding is given.

Shapes: N tokens, D hidden, V rows of a shard (padding included).
"""

from __future__ import annotations

import torch

from pipert.errors import ConfigError
from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.vocab_shard import VocabShard

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_weight(weight: torch.Tensor, shard: VocabShard, bias: torch.Tensor | None = None) -> None:
    """Raise ConfigError unless ``weight`` is ``[shard.size, D]`` in a dtype that is computed in, and the bias fits."""
    if weight.dtype not in _DTYPES:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise ConfigError(f"the weight must be of one of the dtypes {names}, not {weight.dtype}")
    if weight.dim() != 2 or weight.shape[0] != shard.size:
        raise ConfigError(
            f"the weight of a shard must be [{shard.size}, hidden size], not {list(weight.shape)}: a vocabulary of "
            f"{shard.vocab_size} is padded at its end to {shard.padded_vocab_size}, a multiple of twice the number of "
            f"shards ({shard.num_shards}), and split evenly"
        )
    if bias is not None and bias.shape != (shard.size,):
        raise ConfigError(f"the bias must be [{shard.size}], as many as the weight has rows, not {list(bias.shape)}")
    if bias is not None:
        _check_same("the bias", bias, "the weight", weight)


def check_tokens(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise ConfigError unless ``x`` [..., D] and ``targets`` [...] fit each other and the weight."""
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ConfigError(f"x must be [..., {weight.shape[1]}], the weight's second size, not {list(x.shape)}")
    _check_same("x", x, "the weight", weight)
    check_targets(targets, weight)
    if targets.shape != x.shape[:-1]:
        raise ConfigError(f"the targets must be {list(x.shape[:-1])}, one for each row of x, not {list(targets.shape)}")


def check_targets(targets: torch.Tensor, weight: torch.Tensor) -> None:
    """Raise ConfigError unless ``targets`` are integers on the weight's device."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ConfigError(f"targets must be integers, not {targets.dtype}")
    if targets.device != weight.device:
        raise ConfigError(f"the targets are on {targets.device}, but the weight is on {weight.device}")


def check_range(targets: torch.Tensor, vocab_size: int, ignore_index: int | None = None) -> None:
    """Raise ConfigError for the first target outside the vocabulary; only on a CPU, where looking costs no wait."""
    if targets.device.type != "cpu":
        return
    bad = (targets < 0) | (targets >= vocab_size)
    if ignore_index is not None:
        bad &= targets != ignore_index
    if bad.any():
        first = int(bad.flatten().nonzero()[0])
        raise ConfigError(
            f"target {first} is {int(targets.flatten()[first])}, outside of the vocabulary 0..{vocab_size - 1}"
            + ("" if ignore_index is None else f" and not ignore_index ({ignore_index})")
        )


def check_main_grad(main_grad: torch.Tensor, parameter: torch.Tensor, name: str) -> None:
    """Raise ConfigError unless ``main_grad`` can take the sum of the parameter's gradients."""
    dtype = accumulation_dtype(parameter.dtype)
    if main_grad.shape != parameter.shape or main_grad.dtype != dtype or main_grad.device != parameter.device:
        raise ConfigError(
            f"the {name}'s main_grad must be {list(parameter.shape)} in {dtype} on {parameter.device}, not "
            f"{list(main_grad.shape)} in {main_grad.dtype} on {main_grad.device}"
        )
    if not main_grad.is_contiguous():
        raise ConfigError(f"the {name}'s main_grad must be contiguous, but its strides are {main_grad.stride()}")


def check_bound(max_workspace_bytes: int | None, num_sms: int | None) -> None:
    """Raise ConfigError for a bound below 1."""
    if max_workspace_bytes is not None and max_workspace_bytes < 1:
        raise ConfigError(f"max_workspace_bytes must be at least 1 (or None, for no bound), not {max_workspace_bytes}")
    if num_sms is not None and num_sms < 1:
        raise ConfigError(f"num_sms must be at least 1 (or None, for all), not {num_sms}")


def _check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise ConfigError(
            f"{name} is {tensor.dtype}, but {other_name} is {other.dtype}: convert one of them (autocast does not)"
        )
    if tensor.device != other.device:
        raise ConfigError(f"{name} is on {tensor.device}, but {other_name} is on {other.device}")
