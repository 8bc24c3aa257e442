"""The output layer and its loss as functions, with autograd, for a vocabulary split over a process group or not split.

Shapes: N tokens (any leading sizes), D hidden, V rows of the shard (padding included).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.distributed as dist

from pipert.errors import ConfigError
from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.checks import check_bound, check_main_grad, check_tokens, check_weight
from pipert.kernels.chunked_ops import vocab_sum_and_grads
from pipert.kernels.layer_settings import LayerSettings
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.output_ops import vocab_losses, vocab_statistics
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard

Reduction: TypeAlias = Literal["none", "sum", "mean"]


def vocab_parallel_linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    shard: VocabShard,
    group: dist.ProcessGroup | None = None,
    bias: torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    options: LossOptions = LossOptions(),
    reduction: Reduction = "mean",
    max_workspace_bytes: int | None = None,
    num_sms: int | None = None,
) -> torch.Tensor:
    """Return the cross entropy of ``x @ weight.T + bias``, whose columns may be split over a group's ranks.

    Every rank calls it with the same x, targets and token weights, gets the same loss, and calls backward with the same
    gradient. Statistics move in one all-gather, the gradient of x in one all-reduce. Bitwise repeatable.

    Where a parameter has a ``main_grad`` (fp32, as Megatron-core's), its gradient is added there, and autograd gets
    none. Without autograd (no_grad, or nothing that requires a gradient) it is forward only, and keeps nothing.

    Args:
        x: ``[..., D]``, the last stage's output; fp64, fp32, bf16 or fp16.
        weight: ``[shard.size, D]``, the same dtype. Its padded rows must be finite; they get no gradient.
        targets: ``[...]``, rows of the whole vocabulary, any integer dtype. On a CPU they are checked; on a GPU that
            would wait for the device, and a target out of range gets the loss NaN.
        shard: which rows of the vocabulary the weight holds.
        group: the ranks that hold the shards, rank r of it shard r; None for one shard.
        bias: ``[shard.size]``.
        token_weights: ``[...]``, what each token's loss is multiplied by; differentiable.
        options: what the loss has beside the plain cross entropy.
        reduction: ``"none"``: the weighted loss of each token, ``[...]``. ``"sum"``: their sum; to divide by a count
            that is known only later, divide this. ``"mean"``: the sum over the sum of the weights of the tokens that
            are not ignored, as torch's cross_entropy: NaN where there are none (their gradients are 0).
        max_workspace_bytes: None keeps ``E'`` ``[N, shard.size]`` in the dtype of x from forward to backward (three
            products). A bound works in chunks of rows, and keeps nothing of that size. For ``"sum"`` and ``"mean"`` the
            gradients are then made in the forward (three products, one all-gather a chunk), and are kept in fp32, that
            of the weight too; for ``"none"`` the backward makes the logits again (four products). The same on all
            ranks.
        num_sms: how many SMs of a GPU the kernels may take, so as to leave some to communication; None for all.

    Returns:
        The loss in fp32 (fp64 for fp64).

    Raises:
        ConfigError: sizes, dtypes or devices that do not fit; a target out of range; shard and group do not fit.
    """
    settings = layer_settings(shard, group, options, max_workspace_bytes, num_sms)
    return loss(x, weight, bias, targets, token_weights, settings, reduction)


def vocab_parallel_logprobs(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    shard: VocabShard,
    group: dist.ProcessGroup | None = None,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    soft_cap: float | None = None,
    max_workspace_bytes: int | None = None,
    num_sms: int | None = None,
) -> torch.Tensor:
    """Return the log-probability of each target ``[...]``, 0 where it is ``ignore_index``; differentiable.

    Arguments and errors as for :func:`vocab_parallel_linear_cross_entropy` with ``reduction="none"``.
    """
    options = LossOptions(ignore_index=ignore_index, soft_cap=soft_cap)
    settings = layer_settings(shard, group, options, max_workspace_bytes, num_sms)
    return 0 - loss(x, weight, bias, targets, None, settings, "none")


def vocab_parallel_logprobs_and_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    shard: VocabShard,
    group: dist.ProcessGroup | None = None,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    soft_cap: float | None = None,
    max_workspace_bytes: int | None = None,
    num_sms: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target and the entropy (in nats) of each token's distribution, both ``[...]``.

    Forward only, without gradients: one product. The log-probability of an ignored token is 0; its entropy is not.
    Arguments and errors as for :func:`vocab_parallel_logprobs`.
    """
    options = LossOptions(ignore_index=ignore_index, soft_cap=soft_cap)
    settings = layer_settings(shard, group, options, max_workspace_bytes, num_sms)
    x_ND, weight, targets_N = _flat(x, weight, targets, bias, settings)
    with torch.no_grad():
        stats = RowStatistics(vocab_statistics(x_ND, weight, bias, targets_N, True, *settings.arguments()))
        lse_N = stats.lse_N
        logprob_N = torch.where(targets_N == ignore_index, 0, stats.target_N - lse_N)
        entropy_N = lse_N - stats.extra_N / stats.sum_exp_N
    return logprob_N.view(targets.shape), entropy_N.view(targets.shape)


def vocab_parallel_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    shard: VocabShard,
    group: dist.ProcessGroup | None = None,
    bias: torch.Tensor | None = None,
    soft_cap: float | None = None,
    max_workspace_bytes: int | None = None,
    num_sms: int | None = None,
) -> torch.Tensor:
    """Return the entropy (in nats) of each token's distribution ``[...]``; forward only, without gradients.

    Arguments and errors as for :func:`vocab_parallel_logprobs_and_entropy`.
    """
    return vocab_parallel_logprobs_and_entropy(
        x,
        weight,
        torch.full(x.shape[:-1], -100, device=x.device),
        shard=shard,
        group=group,
        bias=bias,
        soft_cap=soft_cap,
        max_workspace_bytes=max_workspace_bytes,
        num_sms=num_sms,
    )[1]


def layer_settings(
    shard: VocabShard,
    group: dist.ProcessGroup | None,
    options: LossOptions,
    max_workspace_bytes: int | None,
    num_sms: int | None,
) -> LayerSettings:
    """Check what is no tensor, and put it together."""
    check_bound(max_workspace_bytes, num_sms)
    if group is None and shard.num_shards > 1:
        raise ConfigError(f"one shard of {shard.num_shards} cannot make the loss alone: give the group that holds all")
    if group is not None and (group.size(), group.rank()) != (shard.num_shards, shard.index):
        raise ConfigError(
            f"rank {group.rank()} of a group of {group.size()} must hold shard {group.rank()} of {group.size()}, "
            f"not shard {shard.index} of {shard.num_shards}"
        )
    name = None if group is None or group.size() == 1 else group.group_name
    return LayerSettings(shard, options, name, max_workspace_bytes, num_sms)


def loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor | None,
    settings: LayerSettings,
    reduction: Reduction,
) -> torch.Tensor:
    """Do as :func:`vocab_parallel_linear_cross_entropy`, whose arguments other than tensors are in ``settings``."""
    if reduction not in ("none", "sum", "mean"):
        raise ConfigError(f"reduction must be none, sum or mean, not {reduction!r}")
    main_grads = _main_grad(weight, "weight"), _main_grad(bias, "bias")
    x_ND, weight, targets_N = _flat(x, weight, targets, bias, settings)
    factors_N = _factors(targets_N, token_weights, targets.shape, settings, accumulation_dtype(x.dtype))
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, weight, bias)]
    if any(wanted) and reduction != "none" and settings.max_workspace_bytes is not None and len(x_ND) > 0:
        if reduction == "mean":
            factors_N = factors_N / factors_N.sum()
        total, *_ = vocab_sum_and_grads(
            x_ND, weight, bias, targets_N, factors_N, *main_grads, wanted, *settings.arguments()
        )
        return total  # type: ignore[no-any-return]
    keep = any(wanted) and settings.max_workspace_bytes is None
    losses_N, *_ = vocab_losses(x_ND, weight, bias, targets_N, *main_grads, keep, *settings.arguments())
    losses_N = losses_N * factors_N
    if reduction == "none":
        return losses_N.view(targets.shape)  # type: ignore[no-any-return]
    return losses_N.sum() if reduction == "sum" else losses_N.sum() / factors_N.sum()  # type: ignore[no-any-return]


def _flat(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    settings: LayerSettings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check the tensors, and return x [N, D], the weight and the targets [N], contiguous."""
    check_weight(weight, settings.shard, bias)
    check_tokens(x, weight, targets)
    return x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous(), targets.reshape(-1)


def _factors(
    targets_N: torch.Tensor,
    token_weights: torch.Tensor | None,
    shape: torch.Size,
    settings: LayerSettings,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return what each token's loss is multiplied by: its weight, 0 if it is ignored."""
    kept_N = targets_N != settings.options.ignore_index
    if token_weights is None:
        return kept_N.to(dtype)
    if token_weights.shape != shape or token_weights.device != targets_N.device:
        raise ConfigError(
            f"token_weights must be {list(shape)} on {targets_N.device}, one for each target, not "
            f"{list(token_weights.shape)} on {token_weights.device}"
        )
    return torch.where(kept_N, token_weights.reshape(-1).to(dtype), 0)


def _main_grad(parameter: torch.Tensor | None, name: str) -> torch.Tensor | None:
    main_grad: torch.Tensor | None = getattr(parameter, "main_grad", None)
    if main_grad is not None:
        assert parameter is not None
        check_main_grad(main_grad, parameter, name)
    return main_grad
