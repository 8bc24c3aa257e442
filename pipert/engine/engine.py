"""The engine: plan and stages in, steps out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from pipert.engine import dump, profiling
from pipert.engine.adopt import adopt, modules_of
from pipert.engine.device import device_of
from pipert.engine.graphed import CudaGraph, GraphedRunner, check_capturable
from pipert.engine.lanes import choose_transport
from pipert.engine.losses import share_losses
from pipert.engine.result import StepResult
from pipert.engine.routes import has_backward, has_post_validation
from pipert.engine.runner import Runner, Settings
from pipert.engine.speculation import Speculation, check_optimizer, share_total
from pipert.engine.step_range import shown_as_range
from pipert.engine.vocab import about_vocabulary, adopt_vocabulary, splits_vocabulary
from pipert.errors import ConfigError, LaneTimeout, PeerLost, PipertError
from pipert.exchange import talking
from pipert.finish import Finish, Optimizer
from pipert.lowering import compile
from pipert.numerics import (
    LossReduction,
    MicrobatchLoss,
    Tie,
    as_tensors,
    check_reduction,
    preserved_rng,
    split_microbatches,
    total_loss,
)
from pipert.passes import vocab_parallel
from pipert.rendezvous import Group, meet
from pipert.replicas import ByStage, Replica
from pipert.schedules import forward_only
from pipert.stages import SplitVocabulary, Stage, StageProtocol, Tensors

if TYPE_CHECKING:
    from pipert.ir import Program
    from pipert.plan import Plan


class Engine:
    """Runs a plan, step by step.

    Without a process group all ranks live in this process: compute runs on the calling thread, in the plan's global
    order. With one, each process is a rank, and the ranks (of one machine) share memory; the group is used to meet and
    at the end of a step, never within. Constructing, stepping and closing are collective.

    A stage that stands on several ranks (in a bidirectional schedule) has a replica on each. Replicas start with the
    same parameters; each accumulates the gradients of its own microbatches, and the end of a step gives all of them the
    sum. A stage that a rank holds through two paths is one stage there.

    Random numbers: every forward is seeded from (seed, step, stage, microbatch); the caller's generator is left as it
    was. Whether modules are in training or evaluation mode is the caller's business, in :meth:`eval_step` too.

    Args:
        plan: what to run.
        stages: this process's stages by their number, or by (rank, stage) where several of its ranks hold the stage; a
            module is wrapped in :class:`pipert.Stage`, with recomputation where the plan has it.
        loss_fn: ``loss_fn(output, target)`` on the last stage's output (a tuple if it has several); it returns the
            loss, or (sum, number of tokens) with ``loss_reduction="token"``. None if no stage computes gradients.
        process_group: the ranks' group, rank by rank; it must be able to move tensors of host memory (gloo).
        optimizer: steps over the parameters of this process's stages. Without one, gradients accumulate and stay for
            the caller, who also drops them.
        clip_norm: the largest global gradient norm.
        tied: copies of one parameter on several stages, as ``(stage, parameter name)`` each; their gradients are summed
            in rank order onto all copies, those on replicas included.
        loss_reduction: ``"microbatch"``, the mean of the microbatches' losses, or ``"token"``, the mean over tokens.
        seed: of the random numbers; None leaves the generators alone: forwards draw from them in the order in which
            they run.
        timeout_ms: the longest wait for another rank, and for the device to finish a step.
        transport: ``"local"`` (all ranks in this process), ``"shm"`` (host memory), ``"ipc"`` (CUDA devices of one
            machine: copy engines move the data) or ``"nccl"``; by default the first that fits.
        cuda_graph: True captures a whole step of this process, after two that run as usual, and launches it from then
            on; ``"op"`` captures each compute op, so that the engine sequences graphs without Python between them.
            Shapes of microbatches must stay; random numbers of a captured step are seeded per step, not per op, and
            refused with ``"op"``; ``accumulate`` is refused.
        trace: on a CUDA device, record when every op begins and ends, with two events each; ``result.trace`` is empty
            otherwise. Host lanes always record.
        vocabulary: this process's shards where the plan splits the vocabulary, by rank (or the one of this rank): they
            hold the input embedding and the output layer, which the stages then lack, and the loss, so that
            ``loss_fn`` is None. Gradients are those of the unsplit model up to rounding.
        link_delays_ms: (source rank, destination rank) → (latency, occupancy) by which messages are held back, to try
            what slower links than this machine's memory do: each holds its link for the occupancy, alone, and arrives
            the latency later.

    Attributes:
        num_steps: how many steps have been run, and so the number of the next one; set it to resume.

    Raises:
        ConfigError: the plan is for other ranks or stages; a stage, parameter or option that cannot be honoured; on
            every rank, naming the rank that cannot start.
        TransportError: the ranks are not on one machine, or do not reach each other in time.
    """

    def __init__(
        self,
        plan: Plan,
        stages: ByStage[nn.Module | StageProtocol],
        loss_fn: Callable[..., Any] | None = None,
        *,
        process_group: Group | None = None,
        optimizer: Optimizer | None = None,
        clip_norm: float | None = None,
        tied: Iterable[Tie] = (),
        loss_reduction: LossReduction = "microbatch",
        seed: int | None = 0,
        timeout_ms: int = 600_000,
        transport: str | None = None,
        cuda_graph: CudaGraph = False,
        trace: bool = True,
        vocabulary: SplitVocabulary | Mapping[int, SplitVocabulary] | None = None,
        link_delays_ms: Mapping[tuple[int, int], tuple[float, float]] | None = None,
    ) -> None:
        self.plan = plan
        self.num_steps = 0
        self._group = process_group
        self._rank = None if process_group is None else dist.get_rank(process_group)
        self._ranks = tuple(range(plan.num_ranks)) if self._rank is None else (self._rank,)
        self._trains = has_backward(plan)
        self._loss_reduction = loss_reduction
        self._num_tokens: Tensor | None = None
        self._closed: str | None = None
        self._accumulated = False
        self._runners: dict[bool, Runner] = {}
        self._speculation: Speculation | None = None
        tied = [tuple(tie) for tie in tied]
        fault: PipertError | None = None
        try:
            self._vocabulary = adopt_vocabulary(plan, vocabulary, self._ranks)
            self._stages = self._adopt(stages, loss_fn)
            self._device = device_of(self._stages)
            if cuda_graph and self._vocabulary:
                raise ConfigError("cuda_graph: a step with a split vocabulary cannot be captured; leave it out")
            check_capturable(cuda_graph, seed, on_host=self._device.is_host, post_validation=has_post_validation(plan))
            transport = choose_transport(transport, on_host=self._device.is_host, one_process=process_group is None)
            shards = {(rank, plan.num_stages + rank): shard for rank, shard in self._vocabulary.items()}
            self._finish = Finish(
                [*(plan.holders(stage) for stage in range(plan.num_stages)), *((r,) for r in range(plan.num_ranks))],
                {**modules_of(self._stages), **shards},
                self._rank,
                process_group,
                tied=tied,
                optimizer=optimizer,
                clip_norm=clip_norm,
                counting_rank=plan.holders(plan.num_stages - 1)[0],
            )
            if has_post_validation(plan):
                self._speculation = self._speculate(optimizer, tied)
        except PipertError as error:
            if process_group is None:
                raise
            fault = error
        session = None
        if process_group is not None:
            options: dict[str, Any] = {
                "optimizer": optimizer is not None,
                "clip_norm": clip_norm,
                "tied": [list(tie) for tie in tied],
            }
            options |= {"loss_reduction": loss_reduction, "seed": seed, "transport": transport, "trace": trace}
            options["cuda_graph"] = cuda_graph
            options["vocabulary"] = [about_vocabulary(shard) for shard in self._vocabulary.values()]
            session = meet(process_group, plan, options, fault)
        self._finish.connect()
        self._settings = Settings(
            self._ranks,
            process_group,
            session,
            self._device,
            transport or "",
            trace,
            self._stages,
            loss_fn,
            loss_reduction,
            seed,
            timeout_ms,
            self._speculation,
            self._vocabulary,
            link_delays_ms or {},
        )
        self._graphed: GraphedRunner | None = None
        if cuda_graph and self._trains:
            self._graphed = GraphedRunner(plan, self._settings, cuda_graph, self._finish.parameters())
            self._runners[True] = self._graphed.runner
        self._runner(training=self._trains)
        dump.watch(self)
        self._profiling = profiling.watch(self, process_group)

    @shown_as_range
    def step(self, inputs: Any = None, targets: Any = None, *, accumulate: bool = False) -> StepResult:
        """Run one step: every microbatch forward and backward, then the optimizer.

        Args:
            inputs: a tensor (or tuple of tensors) cut on dimension 0, or a list of microbatches, each a tensor or a
                tuple of tensors, of any sizes; all of them on each rank with the first stage, None elsewhere.
            targets: likewise, for ``loss_fn``, on each rank with the last stage. Where the plan splits the vocabulary,
                every rank needs inputs (of a split embedding) and targets; a microbatch's targets may be a tuple of
                targets and their weights.
            accumulate: keep the gradients for the next step; nothing is summed over copies, clipped or stepped.

        Raises:
            ConfigError: the number of microbatches is not the plan's, or the plan has no backward.
            StageError: a stage or the loss function raised.
            PeerLost: another rank died or failed; the message says which, and at which op.
            LaneTimeout: a wait took longer than ``timeout_ms``. As with PeerLost, the message names a file that shows
                where this rank's lanes stood.
            PipertError: a loss or the gradient norm is not finite.
        """
        if not self._trains:
            raise ConfigError("this plan has no backward: call eval_step")
        if self._speculation is not None and accumulate:
            raise ConfigError("accumulate: this plan steps the optimizer itself (post-validation), in every step")
        if self._graphed is not None and accumulate:
            raise ConfigError("accumulate: a captured step makes gradients anew; leave out cuda_graph")
        step = self.num_steps
        self._profiling.start(step)
        runner, losses = self._run(True, inputs, targets)
        if self._speculation is not None and self._speculation.void:
            runner.discard()
            self._raise_failure()
            runner, losses = self._run(True, inputs, targets)
        self.num_steps += 1
        loss, per_microbatch = self._total(losses)
        norm = None
        if not accumulate and self._speculation is None:
            num_tokens, self._num_tokens = self._num_tokens, None
            norm = self._finish(step, num_tokens, per_token=self._loss_reduction == "token")
        self._accumulated = accumulate
        return self._profiling.keep(self._result(runner, step, loss, per_microbatch, norm))

    def eval_step(self, inputs: Any = None, targets: Any = None) -> StepResult:
        """Run every microbatch forward only, without gradients; nothing is counted as a step.

        Inputs, targets and errors are those of :meth:`step`. The modules' mode is left as it is: call ``module.eval()``
        before if dropout is not wanted.
        """
        self.settle()
        runner, losses = self._run(False, inputs, targets)
        loss, per_microbatch, _ = total_loss(losses) if losses else (None, None, None)
        return self._result(runner, self.num_steps, loss, per_microbatch, None)

    def settle(self) -> Tensor | None:
        """Judge the optimizer's last step of a plan with post-validation now, not in the next step. Collective.

        Afterwards the parameters are what they would be without post-validation. :meth:`eval_step` and :meth:`close` do
        it by themselves; whoever reads or saves parameters calls it before.

        Returns:
            The global norm of the last step's gradients before clipping; None if nothing is to be judged.

        Raises:
            PipertError: that norm is not finite; no parameter was changed by that step.
            TransportError: the process group failed.
        """
        if self._speculation is None or not self._speculation.pending:
            return None
        total = self._speculation.total
        if self._group is not None:
            with talking(self._rank, self.num_steps):
                total = self._finish.here(share_total(total, self._ranks[0], self.plan.num_ranks, self._group))
        self._speculation.settle(total)
        self._raise_failure()
        return total

    def dump(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write where every lane of this process stands (its cursor, its current op, what it waits for) as JSON.

        SIGUSR1 calls it, unless the program handles that signal itself; so does every rank when a lane times
        out or a rank is lost.

        Args:
            path: the file; by default one named after rank and process, in ``$PIPERT_DUMP_DIR`` or the
                directory for temporary files.

        Returns:
            The file that was written.
        """
        target = dump.default_path(self._ranks) if path is None else Path(path)
        status = {
            "step" if training else "eval_step": runner.lanes.status().splitlines()
            for training, runner in self._runners.items()
        }
        dump.write(target, {"ranks": self._ranks, "step": self.num_steps, "plan": self.plan.name, "status": status})
        return target

    def close(self) -> None:
        """Settle, stop the lanes, tell the other ranks goodbye, release the memory. Stages and gradients stay."""
        try:
            if self._closed is None:
                self.settle()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._closed = self._closed or "this engine is closed"
        dump.forget(self)
        self._profiling.close()
        while self._runners:
            self._runners.popitem()[1].close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    def _speculate(self, optimizer: Optimizer | None, tied: Sequence[Tie]) -> Speculation:
        """Make what runs a plan's ops of post-validation."""
        if self._vocabulary:
            raise ConfigError("vocabulary: its ranks meet in every step, which post-validation is there to avoid")
        if tied:
            raise ConfigError(
                "tied: adding up copies is a meeting of ranks, which post-validation is there to avoid; leave out one"
            )
        if self._loss_reduction == "token":
            raise ConfigError("loss_reduction='token': all ranks would wait for the number of tokens (post-validation)")
        return Speculation(self._finish, check_optimizer(optimizer), self._ranks, self.plan.num_ranks)

    def _raise_failure(self) -> None:
        assert self._speculation is not None
        failure, self._speculation.failure = self._speculation.failure, None
        if failure is not None:
            raise failure

    def _adopt(
        self, stages: ByStage[nn.Module | StageProtocol], loss_fn: Callable[..., Any] | None
    ) -> dict[Replica, StageProtocol]:
        check_reduction(self._loss_reduction)
        adopted = adopt(self.plan, stages, self._ranks)
        last = self.plan.num_stages - 1
        if splits_vocabulary(self.plan)[1]:
            if loss_fn is not None:
                raise ConfigError("loss_fn: this plan splits the output layer, whose loss is its own (vocabulary)")
            return adopted
        if loss_fn is None and self._trains:
            for (rank, stage), adopted_stage in adopted.items():
                if stage == last and isinstance(adopted_stage, Stage):
                    raise ConfigError(f"loss_fn is needed on rank {rank}, which holds the last stage")
        return adopted

    def _runner(self, training: bool) -> Runner:
        """Return the runner of steps or of forward-only steps; the latter is made when it is first needed."""
        if training not in self._runners:
            plan, settings = self.plan, self._settings
            if self._trains and not training:
                plan = compile(self._without_backward(), recv_depth=plan.recv_depth)
                settings = replace(settings, session=settings.session and f"{settings.session}-eval")
            self._runners[training] = Runner(plan, settings)
        return self._runners[training]

    def _without_backward(self) -> Program:
        """Return the program of the same microbatches through the same stages, forward only."""
        program = forward_only(self.plan.paths, self.plan.path_of)
        return vocab_parallel(program, 1) if self._vocabulary else program

    def _run(self, training: bool, inputs: Any, targets: Any) -> tuple[Runner, list[MicrobatchLoss]]:
        if self._closed:
            raise PipertError(self._closed, step=self.num_steps)
        runner = self._runner(training)
        try:
            inputs = self._inputs(inputs)
            targets = self._microbatches("targets", targets, self.plan.num_stages - 1)
        except ConfigError as error:
            if self._settings.session is not None:  # the other ranks are on their way into the step
                runner.lanes.abort(f"ConfigError: {error}")
                self._fail(runner, error)
            raise
        try:
            if self._speculation is not None:
                self._speculation.start(self.num_steps)
            with preserved_rng() if self._settings.seed is not None else nullcontext():
                run = self._graphed.step if training and self._graphed is not None else runner.step
                losses = run(self.num_steps, inputs, targets)
            if self._finish.judges:
                runner.wait(losses)
            return runner, self._complete(losses)
        except BaseException as error:
            self._fail(runner, error)
            raise

    def _fail(self, runner: Runner, error: BaseException) -> None:
        if isinstance(error, (LaneTimeout, PeerLost)):
            try:
                error.args = (f"{error}; this rank's lanes are in {self.dump()}",)
            except OSError as reason:
                error.args = (f"{error}; where this rank's lanes stood could not be written: {reason}",)
        if self._finish.steps_optimizer and not self._accumulated:
            self._finish.drop_gradients()  # those of a part of a step are of no use to whoever goes on
        self._closed = f"step {self.num_steps} ended this engine ({type(error).__name__}: {error}); make a new one"
        runner.discard()
        self._stop()

    def _inputs(self, batch: Any) -> list[Tensors]:
        microbatches = [() if x is None else as_tensors(x) for x in self._microbatches("inputs", batch, 0)]
        if batch is None and any(
            stage == 0 and isinstance(self._stages[rank, stage], Stage) for rank, stage in self._stages
        ):
            raise ConfigError("inputs: stage 0 needs some, on its rank")
        for tensor in (tensor for microbatch in microbatches for tensor in microbatch):
            if not self._device.holds(tensor):
                raise ConfigError(f"inputs: a tensor on {tensor.device}; the stages are on {self._device.torch_device}")
        return microbatches

    def _microbatches(self, name: str, batch: Any, stage: int) -> list[Any]:
        """Cut a batch for ``stage``, where it is here."""
        rank = next((rank for rank, here in self._stages if here == stage), None)
        if rank is None and batch is not None and self._vocabulary:
            rank = self._ranks[0]
        if rank is None:
            return [None] * self.plan.num_microbatches
        try:
            return split_microbatches(batch, self.plan.num_microbatches)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}", rank=rank) from None

    def _complete(self, losses: list[MicrobatchLoss | None]) -> list[MicrobatchLoss]:
        """Return the losses of all microbatches on every holder of the last stage, none elsewhere."""
        last = self.plan.num_stages - 1
        if self._group is not None and len(self.plan.holders(last)) > 1 and (self._rank, last) in self._stages:
            with talking(self._rank, self.num_steps):
                losses = share_losses(self.plan, losses, self._ranks[0], self._group)
        return [loss for loss in losses if loss is not None]

    def _total(self, losses: list[MicrobatchLoss]) -> tuple[Tensor | None, Tensor | None]:
        if not losses:
            return None, None
        loss, per_microbatch, num_tokens = total_loss(losses)
        self._num_tokens = num_tokens if self._num_tokens is None else self._num_tokens + num_tokens
        return loss, per_microbatch

    def _result(
        self, runner: Runner, step: int, loss: Tensor | None, losses: Tensor | None, grad_norm: Tensor | None
    ) -> StepResult:
        peak = runner.peak_activation_bytes()
        return StepResult(step, runner.plan, loss, losses, grad_norm, peak, runner.lanes.trace_reader())
