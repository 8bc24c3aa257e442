"""A profile whose first and last layers, the input embedding and the output layer, are split over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

from pipert.costs import VocabCosts
from pipert.errors import ConfigError
from pipert.tune.profile import Layer


def split_vocabulary(layers: Sequence[Layer], num_ranks: int, algorithm: int) -> tuple[tuple[Layer, ...], VocabCosts]:
    """Take the first and the last layer from a profile, and give every rank its share of them.

    The output layer's F is its logits, its I and W are the two products of the backward: S is F, in Algorithm 2 also I,
    and T the rest, as in :func:`pipert.passes.vocab_parallel`. What the split adds, its meetings, the profile does not
    know, nor what is held from S to T.

    Returns:
        The layers in between, and the costs of a rank's share.

    Raises:
        ConfigError: no rank would have a layer of its own.
    """
    if len(layers) < num_ranks + 2:
        raise ConfigError(
            f"the profile has {len(layers)} layers, but a split vocabulary needs {num_ranks + 2}: the embedding, the "
            f"output layer, and one in between for each of the {num_ranks} ranks"
        )
    embedding, *between, output = layers
    in_s = output.F + (output.I if algorithm == 2 else 0.0)
    costs = VocabCosts(
        S=in_s / num_ranks,
        T=(output.time - in_s) / num_ranks,
        embed=embedding.F / num_ranks,
        embed_w=(embedding.I + embedding.W) / num_ranks,
    )
    return tuple(between), costs
