"""One rank's shard of a model's two ends, where the vocabulary is split over all ranks (arXiv 2411.05288).

Shapes: V rows of a shard, padding included; D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipert.errors import ConfigError
from pipert.kernels import EmbeddingShard, LossOptions, OutputShard, VocabShard


class SplitVocabulary(nn.Module):
    """A rank's rows of the input embedding and of the output layer, whose loss is the cross entropy.

    The model's first stage then starts at embedded tokens, and its last ends before the output layer, with a tensor of
    the targets' shape and one more dimension of size D.

    Args:
        shard: which rows; its index is the rank.
        embedding: ``[shard.size, D]``; None where the plan does not split the input embedding.
        output: likewise, of the output layer; the same parameter as ``embedding`` where the two are tied.
        bias: of the output layer, ``[shard.size]``.
        options: of the loss.
        main_grad_dtype: sum gradients in ``main_grad`` of this type, not in ``grad``; as in :class:`pipert.Stage`.

    Attributes:
        shard: as given.
        options: as given.

    Raises:
        ConfigError: a parameter is not of the shard's size, or there is none at all.
    """

    def __init__(
        self,
        shard: VocabShard,
        embedding: nn.Parameter | None = None,
        output: nn.Parameter | None = None,
        *,
        bias: nn.Parameter | None = None,
        options: LossOptions | None = None,
        main_grad_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embedding is None and output is None:
            raise ConfigError("a split vocabulary needs an embedding, an output layer, or both")
        if bias is not None and output is None:
            raise ConfigError("bias is that of the output layer, of which there is none")
        self.shard = shard
        self.options = options or LossOptions()
        self.embedding = embedding
        self.output = output
        self.bias = bias
        self._main_grad_dtype = main_grad_dtype
        self._sums: dict[nn.Parameter, Tensor] = {}
        if embedding is not None:
            self.embedding_shard(embedding)
        if output is not None:
            self.output_shard(output)

    def embedding_shard(self, weight: nn.Parameter) -> EmbeddingShard:
        """Return what looks tokens up in ``weight``, the embedding, as it is now."""
        return EmbeddingShard(weight, self.shard)

    def output_shard(self, weight: nn.Parameter) -> OutputShard:
        """Return what runs S and T on ``weight``, the output layer, as it is now."""
        return OutputShard(weight, self.shard, self.options, bias=self.bias)

    def gradient_sum(self, parameter: nn.Parameter) -> Tensor:
        """Return what the gradients of ``parameter`` are added to, in fp32 or fp64.

        That is its ``main_grad`` where it has or is to have one, else its ``grad``; where that is of a lower precision,
        a sum that :meth:`finish` adds to it.
        """
        main_grad: Tensor | None = getattr(parameter, "main_grad", None)
        if main_grad is None and self._main_grad_dtype is not None:
            main_grad = torch.zeros_like(parameter, dtype=self._main_grad_dtype)
            parameter.main_grad = main_grad  # type: ignore[attr-defined]
        if main_grad is not None:
            return main_grad
        if parameter.dtype in (torch.float32, torch.float64):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            return parameter.grad
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return self._sums[parameter]

    def finish(self) -> None:
        """End a step: round the sums of parameters of low precision to their gradients."""
        for parameter, total in self._sums.items():
            rounded = total.to(parameter.dtype)
            parameter.grad = rounded if parameter.grad is None else parameter.grad + rounded
        self._sums.clear()

    def discard(self) -> None:
        """Forget the sums, after a step that failed."""
        self._sums.clear()
