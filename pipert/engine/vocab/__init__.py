"""A split vocabulary in the engine: what every rank does for it beside its stages.

``adopt`` checks what the engine is given, ``batches`` what a step is given; ``embedding`` and ``output`` run the passes
of one rank at the model's two ends, where they take the place of what feeds the first stage and of the loss; ``ranks``
holds those of a process.
"""

from pipert.engine.vocab.adopt import about_vocabulary, adopt_vocabulary, splits_vocabulary
from pipert.engine.vocab.ranks import VocabRanks

__all__ = ["VocabRanks", "about_vocabulary", "adopt_vocabulary", "splits_vocabulary"]
