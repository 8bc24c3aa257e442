"""Stages: what runs on a rank, driven op by op by an engine."""

from pipert.stages.protocol import Grads, StageProtocol, Tensors
from pipert.stages.split_vocabulary import SplitVocabulary
from pipert.stages.stage import Stage
from pipert.stages.timed import Timed

__all__ = ["Grads", "SplitVocabulary", "Stage", "StageProtocol", "Tensors", "Timed"]
