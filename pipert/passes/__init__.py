"""Passes: a program in, a program out (or an error), nothing changed."""

from pipert.passes.delay_backward import delay_backward
from pipert.passes.post_validation import post_validation
from pipert.passes.recompute import recompute
from pipert.passes.shard import shard
from pipert.passes.split_backward import split_backward
from pipert.passes.validate import validate
from pipert.passes.vocab_parallel import vocab_parallel

__all__ = [
    "delay_backward",
    "post_validation",
    "recompute",
    "shard",
    "split_backward",
    "validate",
    "vocab_parallel",
]
