"""Triton kernels, each with a plain-torch reference in :mod:`pipert.kernels.reference`.

The output layer with its loss, split over the vocabulary (arXiv 2411.05288): by itself, as functions and a module, and
as shards whose passes a schedule places.
"""

from pipert.kernels.embedding_shard import EmbeddingShard
from pipert.kernels.linear_cross_entropy import (
    vocab_parallel_entropy,
    vocab_parallel_linear_cross_entropy,
    vocab_parallel_logprobs,
    vocab_parallel_logprobs_and_entropy,
)
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.modules import VocabParallelLinearCrossEntropy
from pipert.kernels.output_shard import OutputShard, ScoreState
from pipert.kernels.statistics import RowStatistics, combine
from pipert.kernels.vocab_shard import VocabShard

__all__ = [
    "EmbeddingShard",
    "LossOptions",
    "OutputShard",
    "RowStatistics",
    "ScoreState",
    "VocabParallelLinearCrossEntropy",
    "VocabShard",
    "combine",
    "vocab_parallel_entropy",
    "vocab_parallel_linear_cross_entropy",
    "vocab_parallel_logprobs",
    "vocab_parallel_logprobs_and_entropy",
]
