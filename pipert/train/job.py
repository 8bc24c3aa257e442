"""The main job: one process's way through a run."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import torch
from rich.console import Console

from pipert.costs import StageCosts
from pipert.engine.vocab import splits_vocabulary
from pipert.errors import PipertError
from pipert.plan import Plan
from pipert.replicas import Replica
from pipert.sim import Costs
from pipert.trace import Report
from pipert.trace.calibrate import calibrate
from pipert.train import results, summary
from pipert.train.config import TrainConfig
from pipert.train.device import device_name, open_device
from pipert.train.place import Place, joined, started_ranks
from pipert.train.plans import fitted, make_plan, timed_costs
from pipert.train.predict import measured_costs, predict, shared_cores
from pipert.train.progress import Display, Monitor
from pipert.train.resume import first_step
from pipert.train.timed import TimedWork
from pipert.train.training import Training
from pipert.train.verify import Reference, compare, compare_parameters
from pipert.train.verify_split import TOLERANCE, SplitReference
from pipert.train.work import StepNote, Work


def run(config: TrainConfig, *, one_process: bool, console: Console) -> None:
    """Run this process's part.

    Raises:
        PipertError: the configuration is wrong, a stage or a rank failed, or the run did not keep its promise
            (--verify, --timed).
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as a launched rank has it: it changes bits
    plan = make_plan(config, None if one_process else started_ranks())
    config = fitted(config, plan)
    steps = range(first_step(config), config.steps)
    device = open_device(config.device, deterministic=config.verify)
    with joined(plan, one_process) as place:
        work = _work(config, plan, place, steps.start, device)
        if not one_process:
            gc.freeze()  # what is there now stays: the collector need not walk it in every step
        try:
            _Job(config, plan, steps, place, device, work, console).run()
        finally:
            work.close()
            gc.unfreeze()  # some extensions report what the end of the process finds frozen as leaked


def _work(config: TrainConfig, plan: Plan, place: Place, first_step: int, device: torch.device) -> Work:
    costs = timed_costs(config)
    if costs is not None:
        return TimedWork(costs, plan, place)
    return Training(config, plan, place, first_step, device)


class _Job:
    """The loop over the steps; what only rank 0 does is marked by ``self._leads``."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        steps: range,
        place: Place,
        device: torch.device,
        work: Work,
        console: Console,
    ) -> None:
        self._config, self._plan, self._steps = config, plan, steps
        self._place, self._device, self._work, self._console = place, device, work, console
        self._leads = place.rank == 0
        tokens = config.batch_size * plan.num_microbatches * config.model.seq_len
        self._monitor = Monitor(plan, 0 if config.timed else tokens)
        verifies = config.verify and self._leads
        splits = any(splits_vocabulary(plan))
        self._reference = Reference(config, plan, device) if verifies and not splits else None
        self._split_reference = SplitReference(config, plan, device) if verifies and splits else None
        self._fault: str | None = None  # where the pipeline first differed from the reference; known to rank 0

    def run(self) -> None:
        folder = summary.make_folder(self._config.runs, self._config.run_name(self._plan.name)) if self._leads else None
        with Display(self._plan.name, self._steps, self._console, shown=self._leads) as display:
            for step in self._steps:
                if not self._step(step):
                    break
                if self._leads:
                    display.update(step, self._monitor)
                self._save(step + 1)
        stage_costs, vocab_costs = self._finish()
        if folder is not None:
            predicted = predict(
                self._plan, self._costs(stage_costs, vocab_costs), one_process=self._place.group is None
            )
            self._write(folder, predicted)
            self._judge(predicted)

    def _step(self, step: int) -> bool:
        """Run a step; return whether to go on, which all ranks decide alike."""
        start = time.perf_counter()
        gathered = self._place.gather((self._work.step(step), self._fault))
        notes: list[StepNote] = [note for note, _ in gathered]
        if self._leads:
            self._monitor.add(step, notes, time.perf_counter() - start)
        if self._reference is not None and self._fault is None:
            bits = [note.bits for note in notes if note.bits is not None]
            self._fault = compare(step, bits, self._reference.step(step))
        if self._split_reference is not None and self._fault is None:
            values = [note.values for note in notes if note.values is not None]
            self._fault = self._split_reference.compare(step, values)
        return all(fault is None for _, fault in gathered)

    def _save(self, num_steps: int) -> None:
        every = self._config.save_every
        if self._config.save is not None and (num_steps == self._steps.stop or (every and num_steps % every == 0)):
            folder = self._work.save(num_steps)
            if self._leads:
                self._console.print(f"saved {folder}", highlight=False)

    def _finish(self) -> tuple[list[dict[Replica, StageCosts]], list[dict[str, float]]]:
        """Compare the parameters; return what each process's ops cost, where it measured that."""
        gathered = self._place.gather((self._work.costs(), self._work.vocab_costs(), self._work.digests()))
        if self._reference is not None and self._fault is None:
            digests = [each for _, _, each in gathered]
            self._fault = compare_parameters(digests, self._reference.parameters())
        return [costs for costs, _, _ in gathered], [shard for _, shards, _ in gathered for shard in shards]

    def _costs(self, measured: list[dict[Replica, StageCosts]], shards: list[dict[str, float]]) -> Costs:
        """Return what the prediction is made from."""
        if self._config.device != "cpu":
            return calibrate(self._monitor.typical_report.trace)
        return timed_costs(self._config) or measured_costs(
            self._plan, measured, shards, shared_cores(self._plan.num_ranks)
        )

    def _write(self, folder: Path, predicted: Report) -> None:
        monitor, plan = self._monitor, self._plan
        losses = monitor.losses
        figures = summary.Summary(
            schedule=plan.name,
            device=device_name(self._device),
            num_ranks=plan.num_ranks,
            num_microbatches=plan.num_microbatches,
            num_steps=monitor.num_steps,
            first_loss=losses[0] if losses else None,
            last_loss=losses[-1] if losses else None,
            losses=losses,
            bitwise_equal=None if self._reference is None else self._fault is None,
            step_time_ms=monitor.step_time_ms,
            predicted_step_time_ms=predicted.makespan,
            bubble_rate=monitor.bubble_rate,
            predicted_bubble_rate=predicted.bubble_rate,
            tokens_per_second=monitor.tokens_per_second,
            peak_activation_bytes=monitor.peak_activation_bytes,
        )
        summary.write(folder, figures, plan, monitor.typical_report.trace, predicted.trace)
        self._console.print(results.table(monitor, predicted, self._caption()))
        if losses:
            self._console.print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
        self._console.print(f"{folder}: summary.json, plan.json, trace.json, timeline.html", highlight=False)

    def _caption(self) -> str:
        if self._config.timed is not None:
            return "predicted: simulated from the costs of --timed"
        if self._config.device != "cpu":
            text = "predicted: simulated from the median time of each stage's ops on the GPU, in one step of this run"
            return f"{text}, one after another" if self._place.group is None else text
        text = "predicted: simulated from the median CPU time of each stage's ops in this run"
        if self._place.group is None:
            return f"{text}, one after another"
        num_cores = shared_cores(self._plan.num_ranks)
        return (
            text if num_cores is None else f"{text}, on {num_cores} shared cores; measured waits for a core are bubble"
        )

    def _judge(self, predicted: Report) -> None:
        """Say whether the run kept its promise."""
        if self._fault is not None:
            raise PipertError(f"not what a single process computes: {self._fault}")
        if self._split_reference is not None:
            self._console.print(
                "every loss and gradient equals the unsplit model's, each step from equal parameters, to "
                f"{self._split_reference.largest_difference:.1g} (relative; at most {TOLERANCE[self._config.dtype]:g})"
            )
        if self._reference is not None:
            self._console.print("every loss, gradient and parameter equals the single process's, bit for bit")
        if self._config.timed is not None:
            error = results.step_time_error(self._monitor, predicted)
            text = f"the measured step is {error:+.1%} off the predicted one"
            if abs(error) > results.TIMED_TOLERANCE:
                raise PipertError(f"{text}, more than {results.TIMED_TOLERANCE:.0%}: something else used the machine?")
            self._console.print(f"{text}, within {results.TIMED_TOLERANCE:.0%}")
