"""A stage that only sleeps."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pipert.errors import ConfigError, StageError
from pipert.stages.protocol import Grads, Tensors

_FORWARD, _BACKWARD = 0, 1
_PR_SET_TIMERSLACK = 29

_thread = threading.local()


class Timed:
    """Sleeps what each op costs, and checks what it is given (see :class:`pipert.stages.StageProtocol`).

    It sends a small tensor (stage, microbatch, direction) where a real stage sends an activation or a gradient, and
    raises when another one arrives than its neighbour must have sent. The last stage's output needs no gradient, so its
    backward takes none. It has no parameters.

    Args:
        F: milliseconds of a forward, of
        I: an input gradient,
        W: a weight gradient,
        B: a full backward (I + W unless given), and
        R: a recomputed forward (F unless given).
        microbatch_scale: per microbatch, what all of these take times the above; empty: 1 for each.
        stage: its number, from 0.
        num_stages: how many there are.
        activation_bytes: what it says to hold for each microbatch between forward and the end of its backward.

    Raises:
        ConfigError: a negative cost, or a stage that does not exist; StageError, from the ops: something wrong arrived,
            or an op came out of turn.
    """

    def __init__(
        self,
        *,
        F: float,
        I: float,  # noqa: E741
        W: float,
        B: float | None = None,
        R: float | None = None,
        microbatch_scale: Sequence[float] = (),
        stage: int,
        num_stages: int,
        activation_bytes: int = 1,
    ) -> None:
        costs = {"F": F, "I": I, "W": W, "B": I + W if B is None else B, "R": F if R is None else R}
        for kind, cost in costs.items():
            if not 0 <= cost < float("inf"):
                raise ConfigError(f"stage {stage}: the cost of {kind} is {cost} ms")
        if not 0 <= stage < num_stages:
            raise ConfigError(f"there is no stage {stage} among {num_stages}")
        self._seconds = {kind: cost / 1000 for kind, cost in costs.items()}
        self._microbatch_scale = microbatch_scale
        self._stage = stage
        self._num_stages = num_stages
        self._activation_bytes = activation_bytes
        self._num_inputs: dict[int, int] = {}
        self._waiting_for_weight_grad: set[int] = set()

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Check the inputs, sleep F, and return the token of this stage."""
        end = self._end("F", microbatch)
        if microbatch in self._num_inputs:
            raise StageError(f"stage {self._stage} got microbatch {microbatch} a second time")
        self._num_inputs[microbatch] = len(inputs)
        outputs = self._forward(inputs, microbatch)
        sleep_until(end)
        return outputs

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """Check the gradients, sleep B, and return the token of this stage."""
        end = self._end("B", microbatch)
        result = self._backward(microbatch, grads)
        sleep_until(end)
        return result

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """Check the gradients, sleep I, and return the token of this stage."""
        end = self._end("I", microbatch)
        result = self._backward(microbatch, grads)
        self._waiting_for_weight_grad.add(microbatch)
        sleep_until(end)
        return result

    def weight_grad(self, microbatch: int) -> None:
        """Sleep W."""
        end = self._end("W", microbatch)
        if microbatch not in self._waiting_for_weight_grad:
            raise StageError(f"stage {self._stage} has no weight gradients of microbatch {microbatch} waiting")
        self._waiting_for_weight_grad.remove(microbatch)
        sleep_until(end)

    def recompute(self, microbatch: int) -> None:
        """Sleep R."""
        end = self._end("R", microbatch)
        if microbatch not in self._num_inputs:
            raise StageError(f"stage {self._stage} has no forward of microbatch {microbatch} to recompute")
        sleep_until(end)

    def forward_only(self, microbatch: int, inputs: Tensors) -> Tensors:
        """Check the inputs, sleep F, and return the token of this stage."""
        end = self._end("F", microbatch)
        outputs = self._forward(inputs, microbatch)
        sleep_until(end)
        return outputs

    def discard(self) -> None:
        """Forget all microbatches."""
        self._num_inputs.clear()
        self._waiting_for_weight_grad.clear()

    @property
    def activation_bytes(self) -> int:
        """``activation_bytes`` for each microbatch that is not finished."""
        return self._activation_bytes * (len(self._num_inputs) + len(self._waiting_for_weight_grad))

    def _end(self, kind: str, microbatch: int) -> float:
        """Return when an op that begins now ends, in the seconds of ``time.monotonic``."""
        scale = self._microbatch_scale[microbatch] if self._microbatch_scale else 1.0
        return time.monotonic() + self._seconds[kind] * scale

    def _forward(self, inputs: Tensors, microbatch: int) -> Tensors:
        if self._stage > 0:
            self._check(inputs, self._stage - 1, microbatch, _FORWARD)
        token = _token(self._stage, microbatch, _FORWARD)
        return (token.requires_grad_(self._stage < self._num_stages - 1),)

    def _backward(self, microbatch: int, grads: Grads) -> Grads:
        num_inputs = self._num_inputs.pop(microbatch, None)
        if num_inputs is None:
            raise StageError(f"stage {self._stage} has no forward of microbatch {microbatch} waiting for its backward")
        if self._stage < self._num_stages - 1:
            self._check(grads, self._stage + 1, microbatch, _BACKWARD)
        if self._stage == 0:
            return (None,) * num_inputs
        return (_token(self._stage, microbatch, _BACKWARD),)

    def _check(self, tensors: Grads, stage: int, microbatch: int, direction: int) -> None:
        expected = [stage, microbatch, direction]
        got = [None if tensor is None else tensor.tolist() for tensor in tensors]
        if got != [expected]:
            raise StageError(f"stage {self._stage} must get [{expected}] (stage, microbatch, direction), it got {got}")


def _token(stage: int, microbatch: int, direction: int) -> Tensor:
    return torch.tensor([stage, microbatch, direction], dtype=torch.float32)


def sleep_until(end: float) -> None:
    """Sleep until ``time.monotonic()`` is ``end``, in seconds, and hardly longer."""
    if sys.platform == "linux" and not getattr(_thread, "is_sharp", False):
        # The kernel may otherwise wake this thread 50 µs late, to save wake-ups.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        _thread.is_sharp = True
    while (remaining := end - time.monotonic()) > 0:
        time.sleep(remaining)
