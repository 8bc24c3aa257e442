"""Stages: what runs on a rank, driven op by op by an engine."""

from pipert.stages.protocol import Grads, StageProtocol, Tensors

__all__ = ["Grads", "StageProtocol", "Tensors"]
