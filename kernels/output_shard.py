"""One shard of an output layer and its loss: the passes S and T, callable apart, without communication.

The caller moves the statistics and the gradients between shards (arXiv 2411.05288, Algorithms 1 and 2):

    every shard:  state = shard.score(x, targets, algorithm=1)                     S
    all shards:   stats = shard.combine(<state.statistics.packed_KN of every shard>)     C1, one all-gather
    every shard:  loss = shard.losses(stats, targets)
                  dx = shard.input_grad(state, stats, loss_grad)                   T in Algorithm 1; with C1 in 2
    all shards:   dx = <the sum of every shard's dx>                               one all-reduce
    every shard:  shard.add_weight_grad(state, stats, loss_grad, main_grad)        T, whenever convenient

Shapes: N tokens, D hidden, V rows of the shard (padding included).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.errors import ConfigError
from pipert.kernels.accumulation import accumulation_dtype
from pipert.kernels.backend_choice import backend_for
from pipert.kernels.bias_grad import add_bias_grad
from pipert.kernels.checks import check_bound, check_main_grad, check_range, check_tokens, check_weight
from pipert.kernels.coefficients import Coefficients
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.no_autocast import no_autocast
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard


@dataclass(frozen=True, slots=True)
class ScoreState:
    """What S leaves for T.

    Attributes:
        x_ND: the layer's input, as it was given.
        local_N: each token's target as a row of the shard, or -1.
        kept_N: False for ignored tokens.
        exp_NV: ``E'``; see :mod:`pipert.kernels.coefficients`.
        product_ND: ``E' W``, in Algorithm 2 only; :meth:`OutputShard.input_grad` writes over it.
        statistics: of this shard.
    """

    x_ND: torch.Tensor
    local_N: torch.Tensor
    kept_N: torch.Tensor
    exp_NV: torch.Tensor
    product_ND: torch.Tensor | None
    statistics: RowStatistics


class OutputShard:
    """A shard of the output layer ``logits = X Wᵀ + bias`` and of the cross entropy over it.

    A bf16 weight on a GPU runs in the Triton kernels, all else in plain torch. Statistics, losses and gradients are
    fp32 (fp64 for fp64 inputs), and bitwise repeatable.

    Args:
        weight_VD: ``[shard.size, D]``, read anew in every pass. Its padded rows must be finite; they take no part, and
            get no gradient.
        shard: which rows of the vocabulary these are.
        options: what the loss has beside the plain cross entropy.
        bias: ``[shard.size]``.
        max_workspace_bytes: bounds what S allocates beside its results.
        num_sms: how many SMs of a GPU the kernels may take; None for all.

    Raises:
        ConfigError: the weight or the bias is not of the shard's size; dtypes or devices differ.
    """

    def __init__(
        self,
        weight_VD: torch.Tensor,
        shard: VocabShard,
        options: LossOptions = LossOptions(),
        bias: torch.Tensor | None = None,
        max_workspace_bytes: int | None = None,
        num_sms: int | None = None,
    ) -> None:
        check_weight(weight_VD, shard, bias)
        check_bound(max_workspace_bytes, num_sms)
        self.shard = shard
        self.options = options
        self._weight_VD = weight_VD
        self._bias = bias
        self._max_workspace_bytes = max_workspace_bytes
        self._num_sms = num_sms
        self._backend = backend_for(weight_VD)

    @property
    def device(self) -> torch.device:
        """The weight's."""
        return self._weight_VD.device

    @property
    def _w_VD(self) -> torch.Tensor:
        """The weight as it is now: an optimizer may have changed it."""
        return self._weight_VD.detach().contiguous()

    @property
    def _bias_V(self) -> torch.Tensor | None:
        return None if self._bias is None else self._bias.detach().contiguous()

    @no_autocast
    def score(self, x_ND: torch.Tensor, targets_N: torch.Tensor, *, algorithm: int = 1) -> ScoreState:
        """S: the shard's logits, once; 1 product in Algorithm 1, 2 in Algorithm 2.

        Args:
            x_ND: the same on all shards.
            targets_N: rows of the whole vocabulary, or ``options.ignore_index``. On a CPU they are checked; on a GPU
                that would wait for the device, so that a target out of range gets the loss NaN instead.
            algorithm: 2 also makes ``E' W``, so that :meth:`input_grad` is elementwise.

        Raises:
            ConfigError: a target out of range (the first is named), sizes, dtypes or devices that do not fit.
        """
        if algorithm not in (1, 2):
            raise ConfigError(f"algorithm must be 1 or 2, not {algorithm}")
        x_ND, local_N, kept_N = self._tokens(x_ND, targets_N)
        exp_NV, statistics = self._backend.score(
            x_ND,
            self._w_VD,
            local_N,
            self.shard.num_real,
            bias_V=self._bias_V,
            soft_cap=self.options.soft_cap,
            sum_logits=self.options.label_smoothing > 0,
            max_workspace_bytes=self._max_workspace_bytes,
            num_sms=self._num_sms,
        )
        product_ND = self._backend.product(exp_NV, self._w_VD, num_sms=self._num_sms) if algorithm == 2 else None
        return ScoreState(x_ND, local_N, kept_N, exp_NV, product_ND, statistics)

    def resume(
        self, x_ND: torch.Tensor, targets_N: torch.Tensor, exp_NV: torch.Tensor, statistics: RowStatistics
    ) -> ScoreState:
        """Return the state that :meth:`score` with Algorithm 1 made of ``x_ND`` and ``targets_N``, from its parts."""
        x_ND, local_N, kept_N = self._tokens(x_ND, targets_N)
        return ScoreState(x_ND, local_N, kept_N, exp_NV, None, statistics)

    @no_autocast
    def statistics(self, x_ND: torch.Tensor, targets_N: torch.Tensor, *, entropy: bool = False) -> RowStatistics:
        """Forward only: the statistics without ``E'``; arguments and errors as for :meth:`score`.

        Args:
            entropy: their ``extra`` is ``Σ exp(z - reference) z``; not with label smoothing, which needs ``Σ z`` there.
        """
        smoothing = self.options.label_smoothing > 0
        if smoothing and entropy:
            raise ConfigError("the entropy is that of the plain softmax: ask for it without label_smoothing")
        x_ND, local_N, _ = self._tokens(x_ND, targets_N)
        statistics = self._backend.statistics(
            x_ND,
            self._w_VD,
            local_N,
            self.shard.num_real,
            bias_V=self._bias_V,
            soft_cap=self.options.soft_cap,
            entropy=entropy,
            max_workspace_bytes=self._max_workspace_bytes,
            num_sms=self._num_sms,
        )
        if smoothing:
            statistics.extra_N.copy_(self._sum_logits(x_ND))
        return statistics

    def combine(self, parts_pKN: torch.Tensor, *, weighted_extra: bool = False) -> RowStatistics:
        """Make the statistics of all shards from those of each; see :func:`pipert.kernels.statistics.combine`."""
        return self._backend.combine(parts_pKN, weighted_extra=weighted_extra)

    def losses(self, all_shards: RowStatistics, targets_N: torch.Tensor) -> torch.Tensor:
        """Return each token's loss [N], the same on all shards; 0 where the target is ``options.ignore_index``.

        Args:
            all_shards: the combined statistics.
            targets_N: as for :meth:`score`.
        """
        return self._backend.losses(all_shards, targets_N, self.options, self.shard.vocab_size)

    def coefficients(self, state: ScoreState, all_shards: RowStatistics, loss_grad_N: torch.Tensor) -> Coefficients:
        """Return what both gradients are scaled by; arguments as for :meth:`input_grad`."""
        return self._backend.coefficients(
            state.statistics, all_shards, loss_grad_N, state.kept_N, self.options, self.shard.vocab_size
        )

    @no_autocast
    def input_grad(
        self,
        state: ScoreState,
        all_shards: RowStatistics,
        loss_grad_N: torch.Tensor,
        *,
        late: Coefficients | None = None,
    ) -> torch.Tensor:
        """Return this shard's part of dX [N, D], to be summed over all shards.

        One product in Algorithm 1. In Algorithm 2 it is elementwise, and made in place of ``state.product_ND``: call it
        once.

        Args:
            state: what :meth:`score` returned.
            all_shards: the combined statistics.
            loss_grad_N: the gradient of each token's loss, with its weight and all scales, which may be known only now;
                [N], or one number for all. That of an ignored token does not matter.
            late: what :meth:`coefficients` makes of them, if it is there already.
        """
        late = late or self.coefficients(state, all_shards, loss_grad_N)
        product_ND = state.product_ND
        if product_ND is None:
            product_ND = self._backend.product(state.exp_NV, self._w_VD, num_sms=self._num_sms)
        grad_ND = self._backend.input_grad(product_ND, self._w_VD, state.local_N, late.a_N, late.b_N)
        if late.q_N is not None:
            grad_ND.addr_(late.q_N, self._sum_rows(), alpha=-1)
        return grad_ND

    @no_autocast
    def add_weight_grad(
        self,
        state: ScoreState,
        all_shards: RowStatistics,
        loss_grad_N: torch.Tensor,
        main_grad_VD: torch.Tensor,
        bias_grad_V: torch.Tensor | None = None,
        *,
        late: Coefficients | None = None,
    ) -> None:
        """T: add the weight's gradient to ``main_grad_VD``, and the bias's to ``bias_grad_V``; one product.

        Args:
            state: what :meth:`score` returned.
            all_shards: the combined statistics.
            loss_grad_N: as for :meth:`input_grad`.
            main_grad_VD: ``[V, D]`` in fp32 (fp64 for fp64), contiguous.
            bias_grad_V: ``[V]``, the same dtype; a pass over ``E'``.
            late: as for :meth:`input_grad`.

        Raises:
            ConfigError: a sum of another size, dtype or device.
        """
        check_main_grad(main_grad_VD, self._weight_VD, "weight")
        late = late or self.coefficients(state, all_shards, loss_grad_N)
        self._backend.add_weight_grad(
            main_grad_VD, state.exp_NV, state.x_ND, state.local_N, late.a_N, late.b_N, num_sms=self._num_sms
        )
        if late.q_N is not None:
            main_grad_VD[: self.shard.num_real] -= late.q_N @ state.x_ND.to(late.q_N.dtype)
        if bias_grad_V is not None:
            self.add_bias_grad(state, late, bias_grad_V)

    @no_autocast
    def add_bias_grad(self, state: ScoreState, late: Coefficients, bias_grad_V: torch.Tensor) -> None:
        """Do the bias's part of :meth:`add_weight_grad` alone, with what :meth:`coefficients` returned."""
        add_bias_grad(bias_grad_V, state.exp_NV, state.local_N, late, self.shard.num_real)

    def _tokens(self, x_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if x_ND.dim() != 2:
            raise ConfigError(f"x must be [tokens, {self._weight_VD.shape[1]}], not {list(x_ND.shape)}")
        check_tokens(x_ND, self._weight_VD, targets_N)
        check_range(targets_N, self.shard.vocab_size, self.options.ignore_index)
        local_N, kept_N = self._backend.locate(targets_N.contiguous(), self.shard, self.options.ignore_index)
        return x_ND.detach().contiguous(), local_N, kept_N

    def _sum_rows(self) -> torch.Tensor:
        """Return the sum of the real rows of the weight [D]."""
        return self._w_VD[: self.shard.num_real].sum(0, dtype=accumulation_dtype(self._weight_VD.dtype))

    def _sum_logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return ``Σ z`` [N] over the real columns: without a cap, linear in x."""
        sum_D = self._sum_rows()
        sum_N = x_ND.to(sum_D.dtype) @ sum_D
        return sum_N if self._bias_V is None else sum_N + self._bias_V[: self.shard.num_real].sum(dtype=sum_D.dtype)
