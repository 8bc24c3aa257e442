"""What each op costs in CPU time: the prediction's input.

On fewer cores than ranks an op's duration also holds the waiting for a core. The CPU time of the thread does not, and
the simulator shares the cores itself (``Costs.host_cores``), so CPU times are what it must be given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import thread_time_ns
from typing import Any

import torch
from torch import Tensor, nn

from pipert.costs import StageCosts
from pipert.kernels import EmbeddingShard, OutputShard, ScoreState, VocabShard
from pipert.stages import Grads, SplitVocabulary, Stage, Tensors

_NS_PER_MS = 1e6


class ClockedStage(Stage):
    """A stage that notes the CPU time of its ops, by kind.

    Attributes:
        forward_end_ns: when its last forward ended; 0 before the first.
    """

    def __init__(
        self, module: nn.Module, *, recompute: bool, main_grad_dtype: torch.dtype | None, batch_weight_grads: bool
    ) -> None:
        super().__init__(
            module, recompute=recompute, main_grad_dtype=main_grad_dtype, batch_weight_grads=batch_weight_grads
        )
        self.forward_end_ns = 0
        self._times_ns: dict[str, list[int]] = {}
        self._put_off_ns: list[int] = []
        self._loss_backward_ns: int | None = None  # when it began, for the next backward of this stage

    def forward(self, microbatch: int, inputs: Tensors) -> Tensors:
        """See StageProtocol."""
        start = thread_time_ns()
        outputs = super().forward(microbatch, inputs)
        self._note("F", start)
        self.forward_end_ns = thread_time_ns()
        return outputs

    def backward(self, microbatch: int, grads: Grads) -> Grads:
        """See StageProtocol."""
        start = self._backward_start_ns()
        input_grads = super().backward(microbatch, grads)
        self._note("B", start)
        return input_grads

    def input_grad(self, microbatch: int, grads: Grads) -> Grads:
        """See StageProtocol."""
        start = self._backward_start_ns()
        input_grads = super().input_grad(microbatch, grads)
        self._note("I", start)
        return input_grads

    def weight_grad(self, microbatch: int) -> None:
        """See StageProtocol. What was put off until now is spread evenly over the microbatches."""
        start = thread_time_ns()
        super().weight_grad(microbatch)
        times_ns = [*self._put_off_ns, thread_time_ns() - start]
        self._put_off_ns.clear()
        self._times_ns.setdefault("W", []).extend([sum(times_ns) // len(times_ns)] * len(times_ns))

    def put_off_weight_grad(self, microbatch: int, owned: Callable[[Grads], Grads]) -> None:
        """See Stage."""
        start = thread_time_ns()
        super().put_off_weight_grad(microbatch, owned)
        self._put_off_ns.append(thread_time_ns() - start)

    def recompute(self, microbatch: int) -> None:
        """See StageProtocol."""
        start = thread_time_ns()
        super().recompute(microbatch)
        self._note("R", start)

    def note_loss(self, loss: Tensor, start: int) -> None:
        """Count a loss, begun at ``start``, as part of the last forward, and its backward as part of the next."""
        loss.register_hook(self._note_loss_backward)  # type: ignore[no-untyped-call]
        self._times_ns["F"][-1] += thread_time_ns() - start

    def costs(self) -> StageCosts:
        """Return the median CPU time of each kind of op, in ms; of a stage that has run."""
        times = {kind: statistics.median(calls) / _NS_PER_MS for kind, calls in self._times_ns.items()}
        full = times.get("B")
        return StageCosts(
            F=times["F"],
            I=times.get("I", full or 0.0),
            W=times.get("W", 0.0),
            B=full,
            R=times.get("R"),
        )

    def _note(self, kind: str, start: int) -> None:
        self._times_ns.setdefault(kind, []).append(thread_time_ns() - start)

    def _note_loss_backward(self, _: Tensor) -> None:
        self._loss_backward_ns = thread_time_ns()

    def _backward_start_ns(self) -> int:
        start, self._loss_backward_ns = self._loss_backward_ns, None
        return thread_time_ns() if start is None else start


class ClockedVocabulary(SplitVocabulary):
    """A rank's shard of the vocabulary that notes the CPU time of its passes, by kind."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.clock = PassClock()
        super().__init__(*arguments, **options)

    def embedding_shard(self, weight: nn.Parameter) -> EmbeddingShard:
        """See SplitVocabulary."""
        return _ClockedEmbedding(weight, self.shard, self.clock)

    def output_shard(self, weight: nn.Parameter) -> OutputShard:
        """See SplitVocabulary."""
        return _ClockedOutput(weight, self.shard, self.options, bias=self.bias, clock=self.clock)

    def costs(self) -> dict[str, float]:
        """Return the median CPU time of each kind of pass, in ms, by its name in `pipert.costs.VocabCosts`."""
        return {name: statistics.median(calls) / _NS_PER_MS for name, calls in self.clock.times_ns.items()}


class PassClock:
    """Adds up the CPU times of the parts of passes."""

    def __init__(self) -> None:
        self.times_ns: dict[str, list[int]] = {}

    @contextmanager
    def noting(self, name: str, *, goes_on: bool = False) -> Iterator[None]:
        """Note what happens within as a pass of this name, or as a part of the last one."""
        start = thread_time_ns()
        yield
        times_ns = self.times_ns.setdefault(name, [])
        spent = thread_time_ns() - start
        if goes_on and times_ns:
            times_ns[-1] += spent
        else:
            times_ns.append(spent)


class _ClockedEmbedding(EmbeddingShard):
    def __init__(self, weight: nn.Parameter, shard: VocabShard, clock: PassClock) -> None:
        super().__init__(weight, shard)
        self._clock = clock

    def embed(self, tokens_N: Tensor) -> Tensor:
        with self._clock.noting("embed"):
            return super().embed(tokens_N)

    def add_grad(self, grad_ND: Tensor, tokens_N: Tensor, main_grad_VD: Tensor) -> None:
        with self._clock.noting("embed_w"):
            super().add_grad(grad_ND, tokens_N, main_grad_VD)


class _ClockedOutput(OutputShard):
    def __init__(self, *arguments: Any, clock: PassClock, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clock = clock

    def score(self, x_ND: Tensor, targets_N: Tensor, *, algorithm: int = 1) -> ScoreState:
        with self._clock.noting("S"):
            return super().score(x_ND, targets_N, algorithm=algorithm)

    def input_grad(self, state: ScoreState, *arguments: Any, **options: Any) -> Tensor:
        # In Algorithm 1 T begins with it; in 2 it is elementwise, and VGRAD begins with it.
        with self._clock.noting("T" if state.product_ND is None else "vgrad"):
            return super().input_grad(state, *arguments, **options)

    def add_weight_grad(self, state: ScoreState, *arguments: Any, **options: Any) -> None:
        with self._clock.noting("T", goes_on=state.product_ND is None):
            super().add_weight_grad(state, *arguments, **options)


def clock_loss(
    loss_fn: Callable[[Tensor, Tensor], Tensor], replicas: Sequence[ClockedStage]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``loss_fn``, its forward counted as part of F, its backward as part of B or I, of a last stage.

    Args:
        loss_fn: the loss.
        replicas: the last stages of this process, on one of which a forward has just run whenever it is called.
    """

    def clocked(output: Tensor, target: Tensor) -> Tensor:
        start = thread_time_ns()
        loss = loss_fn(output, target)
        if loss.requires_grad:
            max(replicas, key=lambda stage: stage.forward_end_ns).note_loss(loss, start)
        return loss

    return clocked
