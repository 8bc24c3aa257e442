"""One shard of an input embedding that is split over the vocabulary, as the output layer is (arXiv 2411.05288).

Shapes: N tokens, D hidden, V rows of the shard (padding included).
"""

from __future__ import annotations

import torch

from pipert.errors import ConfigError
from pipert.kernels.backend_choice import backend_for
from pipert.kernels.checks import check_main_grad, check_range, check_targets, check_weight
from pipert.kernels.vocab_shard import VocabShard


class EmbeddingShard:
    """The rows of an embedding that one rank holds; no communication.

    Args:
        weight_VD: ``[shard.size, D]``, read anew in every call.
        shard: which rows of the vocabulary these are.

    Raises:
        ConfigError: the weight is not of the shard's size.
    """

    def __init__(self, weight_VD: torch.Tensor, shard: VocabShard) -> None:
        check_weight(weight_VD, shard)
        self.shard = shard
        self._weight_VD = weight_VD
        self._backend = backend_for(weight_VD)

    @property
    def _w_VD(self) -> torch.Tensor:
        """The weight as it is now: an optimizer may have changed it."""
        return self._weight_VD.detach().contiguous()

    def embed(self, tokens_N: torch.Tensor) -> torch.Tensor:
        """Return the tokens' rows [N, D] in the weight's dtype, zeros where another shard holds them.

        Their sum over the shards is exact: all but one are zeros.

        Raises:
            ConfigError: a token out of range (the first is named; on a CPU only, a GPU gives zeros), or no integers.
        """
        return self._backend.embed(self._w_VD, self._local(tokens_N))

    def add_grad(self, grad_ND: torch.Tensor, tokens_N: torch.Tensor, main_grad_VD: torch.Tensor) -> None:
        """Add the gradients of the embedded tokens to the rows' gradients, in token order.

        Args:
            grad_ND: of all tokens' embeddings, the same on all shards.
            tokens_N: as for :meth:`embed`.
            main_grad_VD: ``[V, D]`` in fp32 (fp64 for fp64), contiguous.

        Raises:
            ConfigError: as for :meth:`embed`, or sizes, dtypes or devices that do not fit.
        """
        if grad_ND.shape != (len(tokens_N), self._weight_VD.shape[1]):
            raise ConfigError(
                f"the gradient must be [{len(tokens_N)}, {self._weight_VD.shape[1]}], not {list(grad_ND.shape)}"
            )
        check_main_grad(main_grad_VD, self._weight_VD, "weight")
        self._backend.add_embedding_grad(main_grad_VD, grad_ND.contiguous(), self._local(tokens_N))

    def _local(self, tokens_N: torch.Tensor) -> torch.Tensor:
        check_targets(tokens_N, self._weight_VD)
        if tokens_N.dim() != 1:
            raise ConfigError(f"the tokens must be one row of them, not {list(tokens_N.shape)}: flatten them")
        check_range(tokens_N, self.shard.vocab_size)
        return self.shard.local(tokens_N.long()).contiguous()
