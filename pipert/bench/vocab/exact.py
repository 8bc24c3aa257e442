"""What an output layer should give, in float64, and how far something else is from it.

Shapes: N tokens, D hidden, V rows of the (only) shard, T of the tokens, R of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipert.bench.vocab.batch import Batch

CHUNK_TOKENS = 256
MOST_TOKENS = 256
MOST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Result:
    """What a side has computed of a batch: the mean loss, and its gradients [N, D] and [V, D]."""

    loss: torch.Tensor
    input_grad_ND: torch.Tensor
    weight_grad_VD: torch.Tensor


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative: of the mean loss, and of gradients in the Frobenius norm."""

    loss: float
    input_grad: float
    weight_grad: float


@dataclass(frozen=True, slots=True)
class Exact:
    """The mean loss of all tokens, and the gradients of some tokens and some rows, spread from first to last."""

    loss: torch.Tensor
    tokens_T: torch.Tensor
    input_grad_TD: torch.Tensor
    rows_R: torch.Tensor
    weight_grad_RD: torch.Tensor

    def errors_of(self, result: Result) -> Errors:
        """Return how far a result is from this one."""
        return Errors(
            _off(result.loss, self.loss),
            _off(result.input_grad_ND[self.tokens_T], self.input_grad_TD),
            _off(result.weight_grad_VD[self.rows_R], self.weight_grad_RD),
        )


def exact(batch: Batch) -> Exact:
    """Compute the mean cross entropy of an unsplit layer and its gradients, some tokens at a time."""
    w_VD, num_tokens = batch.w_VD.double(), len(batch.targets_N)
    tokens_T = _spread(num_tokens, MOST_TOKENS, w_VD.device)
    rows_R = _spread(len(w_VD), MOST_ROWS, w_VD.device)
    loss = w_VD.new_zeros(())
    input_grad_ND = w_VD.new_empty(num_tokens, w_VD.shape[1])
    weight_grad_RD = w_VD.new_zeros(len(rows_R), w_VD.shape[1])
    for start in range(0, num_tokens, CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        x_nD, targets_n = batch.x_ND[chunk].double(), batch.targets_N[chunk, None]
        z_nV = x_nD @ w_VD.T
        if batch.soft_cap is not None:
            z_nV = batch.soft_cap * torch.tanh(z_nV / batch.soft_cap)
        loss += (z_nV.logsumexp(1) - z_nV.gather(1, targets_n)[:, 0]).sum() / num_tokens
        grad_nV = z_nV.softmax(1).scatter_add_(1, targets_n, -torch.ones_like(targets_n, dtype=z_nV.dtype))
        if batch.soft_cap is not None:
            grad_nV *= 1 - (z_nV / batch.soft_cap) ** 2
        grad_nV /= num_tokens
        wanted_t = tokens_T[(tokens_T >= start) & (tokens_T < start + CHUNK_TOKENS)]
        input_grad_ND[wanted_t] = grad_nV[wanted_t - start] @ w_VD
        weight_grad_RD += grad_nV[:, rows_R].T @ x_nD
    return Exact(loss, tokens_T, input_grad_ND[tokens_T], rows_R, weight_grad_RD)


def _spread(size: int, most: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(0, size - 1, min(size, most), device=device, dtype=torch.float64).round().long()


def _off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())
