"""Cut the layers of a model into stages.

A *cut* is the number of layers of each stage, in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Cut = tuple[int, ...]


def even_cut(num_layers: int, num_stages: int) -> Cut:
    """Give every stage the same number of layers; where they do not divide, the first ones get one more."""
    each, rest = divmod(num_layers, num_stages)
    return tuple(each + (stage < rest) for stage in range(num_stages))


def bottleneck_cut(times: Sequence[float], speeds: Sequence[float]) -> Cut:
    """Cut so that the slowest stage is as fast as can be: exact, by dynamic programming.

    Args:
        times: of each layer.
        speeds: of each stage's rank: a stage takes the times of its layers, divided by this. No more than layers.
    """
    num_layers, num_stages = len(times), len(speeds)
    upto = [0.0, *itertools.accumulate(times)]
    least = [0.0] + [math.inf] * num_layers  # of the first layers, in as many stages as done
    begins: list[list[int]] = []
    for stage, speed in enumerate(speeds):
        now = [math.inf] * (num_layers + 1)
        begin_of = [0] * (num_layers + 1)
        for end in range(stage + 1, num_layers - (num_stages - stage - 1) + 1):
            for begin in range(end - 1, stage - 1, -1):
                time = (upto[end] - upto[begin]) / speed
                if max(least[begin], time) < now[end]:
                    now[end], begin_of[end] = max(least[begin], time), begin
                if time >= now[end]:
                    break
        least = now
        begins.append(begin_of)
    cut: list[int] = []
    end = num_layers
    for begin_of in reversed(begins):
        cut.append(end - begin_of[end])
        end = begin_of[end]
    return tuple(reversed(cut))


def improve(cut: Cut, cost: Callable[[Cut], Any], stop: Callable[[], bool] = lambda: False) -> Cut:
    """Move boundaries by one layer while that lowers the cost; also two at a time, which shifts whole stages."""
    best, best_cost = cut, cost(cut)
    improved = True
    while improved and not stop():
        improved = False
        for other in neighbours(best):
            if stop():
                break
            other_cost = cost(other)
            if other_cost < best_cost:
                best, best_cost, improved = other, other_cost, True
                break
    return best


def neighbours(cut: Cut) -> Iterator[Cut]:
    """Give a layer of one stage to another; the stages between them shift by one layer."""
    for giver, taker in itertools.permutations(range(len(cut)), 2):
        if cut[giver] > 1:
            yield tuple(size + (stage == taker) - (stage == giver) for stage, size in enumerate(cut))


def slices(cut: Cut) -> list[slice]:
    """List the layers of each stage."""
    ends = list(itertools.accumulate(cut))
    return [slice(end - size, end) for size, end in zip(cut, ends, strict=True)]
