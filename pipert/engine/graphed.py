"""Steps on a CUDA device that are captured once and then launched: as one graph, or as a graph for each compute op.

What a graph reads and writes stays where it was when it was captured: inputs and targets are copied into place, and
gradients and losses lie in the graph's own memory, where the next launch writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from pipert.engine.device import CudaDevice
from pipert.engine.driver import Handler
from pipert.engine.lanes import DeviceLanes
from pipert.engine.routes import compute_ops
from pipert.engine.runner import Runner, Settings
from pipert.errors import ConfigError
from pipert.numerics import MicrobatchLoss, seed_op

if TYPE_CHECKING:
    from pipert.plan import Plan
    from pipert.stages import Tensors

CudaGraph = bool | Literal["op"]
"""True: one graph for a step; ``"op"``: one for each compute op; False: none."""

_NUM_WARM_UP_STEPS = 2  # libraries make their handles, and receive slots get their memory


class GraphedRunner:
    """Runs the steps of one plan, as :class:`pipert.engine.runner.Runner` does: the first ones by its handlers.

    Args:
        plan: one that trains.
        settings: of the engine; its device is a CUDA device.
        mode: True or ``"op"``.
        parameters: those of this process, whose gradients the graphs make.
    """

    def __init__(self, plan: Plan, settings: Settings, mode: CudaGraph, parameters: Sequence[nn.Parameter]) -> None:
        assert isinstance(settings.device, CudaDevice)
        self._ops = None if mode is True else _OpGraphs(plan, settings)
        self.runner = Runner(plan, settings, through=None if self._ops is None else self._ops.through)
        assert isinstance(self.runner.lanes, DeviceLanes)
        self._lanes = self.runner.lanes
        self._device = settings.device
        assert settings.seed is not None
        self._seed: int = settings.seed
        self._first_stage = min(stage for _, stage in settings.stages)
        self._gradients = _Gradients(parameters)
        self._num_steps = 0
        self._inputs: list[Tensors] = []
        self._targets: list[Any] = []
        self._losses: list[MicrobatchLoss | None] = []
        self._replay: Callable[[], None] | None = None

    def step(self, step: int, inputs: Sequence[Tensors], targets: Sequence[Any]) -> list[MicrobatchLoss | None]:
        """Run one step; return the loss of each microbatch.

        Raises:
            ConfigError: the step cannot be captured; inputs or targets of other shapes than those that were captured;
                gradients of the step before that nobody has dropped.
        """
        self._gradients.check_dropped()
        self._num_steps += 1
        if self._num_steps <= _NUM_WARM_UP_STEPS:
            return self._device.warm_up(lambda: self.runner.step(step, inputs, targets))
        if self._num_steps == _NUM_WARM_UP_STEPS + 1:
            self._inputs = [tuple(tensor.detach().clone() for tensor in tensors) for tensors in inputs]
            self._targets = [_copied(target) for target in targets]
            self._capture(step)
        else:
            for held, given in zip([*self._inputs, *self._targets], [*inputs, *targets], strict=True):
                _copy_into(held, given)
            self._launch(step)
        self._gradients.give()
        return list(self._losses)

    def _capture(self, step: int) -> None:
        def run() -> list[MicrobatchLoss | None]:
            return self.runner.step(step, self._inputs, self._targets)

        if self._ops is None:
            self._losses, self._replay = self._device.capture(run)
            self._gradients.take()
            self._launch(step)
        else:
            self._ops.capture(self._lanes.run_as)
            self._losses = run()
            self._gradients.take()

    def _launch(self, step: int) -> None:
        if self._replay is None:
            self._lanes.step(step)
        else:
            seed_op(self._seed, step, self._first_stage, 0)
            self._replay()
            self._lanes.launched(step)


class _OpGraphs:
    """Stands before the handlers: looks at what they do in the first steps, then captures each in a graph."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        assert isinstance(settings.device, CudaDevice)
        self._device = settings.device
        self._texts = [str(op) for _, op in compute_ops(plan, settings.ranks)]
        self._run_as: Callable[[int], None] | None = None

    def through(self, index: int, handler: Handler) -> Handler:
        """Return what the executor calls instead of ``handler``, that of its op ``index``."""

        def run(microbatch: int) -> None:
            if self._run_as is None:
                self._watch(index, handler, microbatch)
            else:
                self._run_as(self._device.capture_op(lambda: handler(microbatch)))

        return run

    def capture(self, run_as: Callable[[int], None]) -> None:
        """From now on capture what handlers enqueue, and hand the graphs to ``run_as``."""
        self._run_as = run_as

    def _watch(self, index: int, handler: Handler, microbatch: int) -> None:
        if self._device.draws(lambda: handler(microbatch)):
            raise ConfigError(
                f"cuda_graph='op': {self._texts[index]} draws random numbers on the device, and its graph would draw "
                "the same ones each time; use cuda_graph=True, or no graphs",
                op=self._texts[index],
            )


class _Gradients:
    """The gradients that a captured step has made, to be given to the parameters after each launch."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._taken: list[tuple[Tensor | None, Tensor | None]] = []

    def check_dropped(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is not None or getattr(parameter, "main_grad", None) is not None:
                raise ConfigError(
                    "cuda_graph: a parameter still has the gradient of the step before, which a launch would "
                    "overwrite; drop gradients after each step (zero_grad(set_to_none=True), and main_grad=None)"
                )

    def take(self) -> None:
        self._taken = [(parameter.grad, getattr(parameter, "main_grad", None)) for parameter in self._parameters]

    def give(self) -> None:
        for parameter, (grad, main_grad) in zip(self._parameters, self._taken, strict=True):
            parameter.grad = grad
            if main_grad is not None:
                parameter.main_grad = main_grad  # type: ignore[attr-defined]


def check_capturable(mode: CudaGraph, seed: int | None, *, on_host: bool, post_validation: bool) -> None:
    """Refuse what cannot be captured, before anything is made.

    Raises:
        ConfigError: an unknown mode; no seed; host memory; a plan with post-validation, which decides on the host.
    """
    if mode not in (True, False, "op"):
        raise ConfigError(f"cuda_graph is True, False or 'op', not {mode!r}")
    if mode and seed is None:
        raise ConfigError("cuda_graph: captured random numbers start from a seed in every step; give one")
    if mode and on_host:
        raise ConfigError("cuda_graph: the stages are in host memory; graphs are for a CUDA device")
    if mode and post_validation:
        raise ConfigError("cuda_graph: a plan with post-validation decides on the host within its steps; leave out one")


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    if value is None:
        return None
    raise ConfigError(f"cuda_graph: targets are tensors, tuples of them, or None, not a {type(value).__name__}")


def _copy_into(held: Any, given: Any) -> None:
    shapes = [tuple(x.shape) for x in _tensors(held)], [tuple(x.shape) for x in _tensors(given)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"cuda_graph: a microbatch of shapes {shapes[1]} cannot run as one of {shapes[0]}, as captured"
        )
    for target, source in zip(_tensors(held), _tensors(given), strict=True):
        target.copy_(source)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
