"""Runs the compute ops of one stage: takes what has arrived, calls the stage, hands on what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipert.engine.ports import Sink, Source
from pipert.engine.speculation import Speculation
from pipert.errors import LaneTimeout, PipertError, StageError, TransportError
from pipert.ir import Op
from pipert.numerics import seed_op
from pipert.ops import OpKind
from pipert.stages import Grads, Stage, StageProtocol, Tensors

Handler = Callable[[int], None]


class Meter:
    """The activation bytes of one rank, and their peak."""

    def __init__(self) -> None:
        self.held = 0
        self.peak = 0

    def hold(self, num_bytes: int) -> None:
        """Count more bytes, or fewer."""
        self.held += num_bytes
        if self.held > self.peak:
            self.peak = self.held


@dataclass(frozen=True, slots=True)
class Ports:
    """The four ends of a stage.

    Attributes:
        inputs: gives the stage's inputs.
        outputs: takes its outputs.
        grads: gives the gradients of its outputs, those that need one.
        input_grads: takes the gradients of its inputs, those that need one.
    """

    inputs: Source
    outputs: Sink
    grads: Source
    input_grads: Sink


class Driver:
    """One stage and its ports.

    Memory: what lies in a receive slot may be used until the last op of its (stage, microbatch). What is handed on
    lives longer, so a result that lies in a slot (a stage that passes an input through) is copied.
    """

    def __init__(
        self,
        stage: StageProtocol,
        stage_idx: int,
        rank: int,
        num_microbatches: int,
        seed: int | None,
        ports: Ports,
        meter: Meter,
        speculation: Speculation | None = None,
    ) -> None:
        self.stage = stage
        self._stage_idx = stage_idx
        self._rank = rank
        self._seed = seed
        self._step = 0
        self._inputs = ports.inputs
        self._outputs = ports.outputs
        self._grads = ports.grads
        self._input_grads = ports.input_grads
        self._needs_grad: list[list[bool]] = [[]] * num_microbatches
        self._meter = meter
        self._held = 0
        self._speculation = speculation

    def start(self, step: int) -> None:
        """Begin a step."""
        self._step = step

    def discard(self) -> None:
        """Forget everything unfinished, after a step that failed."""
        self.stage.discard()
        self._inputs.clear()
        self._grads.clear()
        self._measure()

    def handler(self, kind: OpKind, *, training: bool, put_off: bool = False) -> Handler:
        """Return the function that the executor calls, with the microbatch, for ops of this kind.

        Args:
            kind: of compute or collective ops.
            training: whether the plan has backwards.
            put_off: leave the work of a W op to the next one of the stage, which computes both together.
        """
        run = {
            OpKind.FORWARD: self._forward if training else self._forward_only,
            OpKind.BACKWARD: self._backward,
            OpKind.INPUT_GRAD: self._input_grad,
            OpKind.WEIGHT_GRAD: self._put_off_weight_grad if put_off else self.stage.weight_grad,
            OpKind.RECOMPUTE: self.stage.recompute,
        }.get(kind) or self._collective(kind)
        if self._speculation is not None:
            run = self._unless_void(run, kind, self._speculation)
        measure, run = self._measure, named_failures(run, kind, self._stage_idx, self._rank, lambda: self._step)

        def handle(microbatch: int) -> None:
            run(microbatch)
            measure()

        return handle

    def _unless_void(self, run: Handler, kind: OpKind, speculation: Speculation) -> Handler:
        """Return what runs an op, or, in a step that will be run again, only hands on that there is nothing."""
        hand_on = {
            OpKind.FORWARD: self._outputs,
            OpKind.BACKWARD: self._input_grads,
            OpKind.INPUT_GRAD: self._input_grads,
        }.get(kind)

        def run_unless_void(microbatch: int) -> None:
            if not speculation.void:
                run(microbatch)
            elif hand_on is not None:
                hand_on.give(microbatch, ())

        return run_unless_void

    def _collective(self, kind: OpKind) -> Handler:
        """Return what runs a data-parallel op of the stage as a whole: its own method, where it has one."""
        method: Callable[[], None] | None = getattr(self.stage, kind.text.lower(), None)
        return lambda _: None if method is None else method()

    def _put_off_weight_grad(self, microbatch: int) -> None:
        assert isinstance(self.stage, Stage)
        self.stage.put_off_weight_grad(microbatch, partial(self._owned, microbatch))

    def _owned(self, microbatch: int, tensors: Grads) -> Grads:
        """Return ``tensors`` with a copy of each that lies in a receive slot."""
        return self._grads.owned(microbatch, self._inputs.owned(microbatch, tensors))

    def _forward(self, microbatch: int) -> None:
        inputs = self._take_inputs(microbatch)
        if not inputs and self._speculation is not None and self._stage_idx > 0:
            self._outputs.give(microbatch, ())  # from a rank that knows already that this step is void
            return
        self._needs_grad[microbatch] = [tensor.requires_grad for tensor in inputs]
        outputs = self.stage.forward(microbatch, inputs)
        self._outputs.give(microbatch, self._inputs.owned(microbatch, outputs))

    def _forward_only(self, microbatch: int) -> None:
        outputs = self.stage.forward_only(microbatch, self._take_inputs(microbatch))
        self._outputs.give(microbatch, self._inputs.owned(microbatch, outputs))

    def _backward(self, microbatch: int) -> None:
        grads = self.stage.backward(microbatch, self._grads.take(microbatch))
        self._give_input_grads(microbatch, grads)

    def _input_grad(self, microbatch: int) -> None:
        grads = self.stage.input_grad(microbatch, self._grads.take(microbatch))
        self._give_input_grads(microbatch, grads)

    def _take_inputs(self, microbatch: int) -> Tensors:
        if self._seed is not None:
            seed_op(self._seed, self._step, self._stage_idx, microbatch)
        return self._inputs.take(microbatch)  # type: ignore[return-value]  # inputs are never missing, gradients may be

    def _give_input_grads(self, microbatch: int, grads: Grads) -> None:
        needs_grad = self._needs_grad[microbatch]
        if False in needs_grad:
            grads = tuple(grad for grad, needed in zip(grads, needs_grad, strict=True) if needed)
        self._input_grads.give(microbatch, self._owned(microbatch, grads))

    def _measure(self) -> None:
        held = self.stage.activation_bytes
        self._meter.hold(held - self._held)
        self._held = held


def named_failures(run: Handler, kind: OpKind, place: int, rank: int, step: Callable[[], int]) -> Handler:
    """Return ``run``, whose failures name rank, op and step.

    Args:
        run: does the work of ops.
        kind: what they are.
        place: their stage, or what else their text begins with.
        rank: where they run.
        step: tells the number of the step.
    """

    def handle(microbatch: int) -> None:
        try:
            run(microbatch)
        except Exception as error:
            if _names_its_place(error):
                raise
            op = str(Op(kind, place, microbatch))
            text = f"rank {rank}, {op}, step {step()}: {type(error).__name__}: {error}"
            raise StageError(text, rank=rank, op=op, step=step()) from error

    return handle


def _names_its_place(error: Exception) -> bool:
    return isinstance(error, (TransportError, LaneTimeout)) or (isinstance(error, PipertError) and error.op is not None)
