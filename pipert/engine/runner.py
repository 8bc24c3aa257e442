"""One plan, bound: its channels, its executor, and a handler for each compute op of this process's ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipert.engine.device import Device
from pipert.engine.driver import Driver, Handler, Meter, Ports
from pipert.engine.lanes import open_lanes
from pipert.engine.loss import Loss
from pipert.engine.ports import Handover, Inbox, Kept, Outbox, SendLane, Sink, Sinks, Source, Sources
from pipert.engine.routes import Route, compute_ops, has_backward, rank_transfers, routes
from pipert.engine.speculation import RankPorts, Speculation
from pipert.engine.vocab import VocabRanks
from pipert.numerics import LossReduction, MicrobatchLoss
from pipert.ops import OpKind, Scope
from pipert.rendezvous import Group
from pipert.replicas import Replica
from pipert.stages import SplitVocabulary, Stage, StageProtocol, Tensors

if TYPE_CHECKING:
    from pipert.ir import Op
    from pipert.plan import Plan


@dataclass(frozen=True, slots=True)
class Settings:
    """What every plan of an engine is run with.

    Attributes:
        ranks: the ranks in this process.
        group: the ranks' process group, and
        session: what names the memory that they share; None if all ranks live in this process.
        device: where the stages' tensors lie.
        transport: how messages travel.
        trace: whether to record, on a CUDA device, when every op begins and ends.
        stages: this process's stages.
        loss_fn: makes the loss of a microbatch; None if there is none.
        loss_reduction: what the loss is averaged over.
        seed: of the random numbers; None leaves the generators alone.
        timeout_ms: the longest wait.
        speculation: runs the ops of post-validation; None if the plan has none.
        vocabulary: per rank of this process, its shard where the plan splits the vocabulary; else empty.
        link_delays_ms: (source rank, destination rank) → (latency, occupancy) of messages that are held back.
    """

    ranks: tuple[int, ...]
    group: Group | None
    session: str | None
    device: Device
    transport: str
    trace: bool
    stages: Mapping[Replica, StageProtocol]
    loss_fn: Callable[..., Any] | None
    loss_reduction: LossReduction
    seed: int | None
    timeout_ms: int
    speculation: Speculation | None
    vocabulary: Mapping[int, SplitVocabulary]
    link_delays_ms: Mapping[tuple[int, int], tuple[float, float]]


class Runner:
    """Runs the steps of one plan.

    Args:
        plan: what to run.
        settings: with what.
        through: what stands before each handler, given its place among the compute ops; None calls them directly.
    """

    def __init__(
        self, plan: Plan, settings: Settings, through: Callable[[int, Handler], Handler] | None = None
    ) -> None:
        self.plan = plan
        self.training = has_backward(plan)
        self.lanes = open_lanes(plan, settings)
        self._meters = {rank: Meter() for rank in settings.ranks}
        self._send_lanes: dict[int, SendLane] = {}
        self._feed = Kept(plan.num_microbatches)
        self._loss = Loss(settings.loss_fn, settings.loss_reduction, plan, check_at_once=settings.device.is_host)
        self._vocab = VocabRanks(plan, settings, self._loss, self._meters, self.lanes.check, training=self.training)
        self._drivers = self._make_drivers(settings)
        self._speculation = settings.speculation if self.training else None
        handlers = self._make_handlers(settings.ranks)
        self.lanes.bind(handlers if through is None else [through(*each) for each in enumerate(handlers)])

    def step(self, step: int, inputs: Sequence[Tensors], targets: Sequence[Any]) -> list[MicrobatchLoss | None]:
        """Run one step; return the loss of each microbatch, None where another rank has it or there is none."""
        for microbatch, tensors in enumerate(inputs):
            self._feed.give(microbatch, tuple(tensor.detach() for tensor in tensors))
        self._loss.start(step, targets)
        self._vocab.start(step, inputs, targets)
        for driver in self._drivers.values():
            driver.start(step)
        for meter in self._meters.values():
            meter.peak = meter.held
        with torch.set_grad_enabled(self.training):
            self.lanes.step(step)
        for lane in self._send_lanes.values():
            lane.flush()
        self._vocab.finish()
        return self._loss.finish()

    def wait(self, losses: Sequence[MicrobatchLoss | None]) -> None:
        """Return when a step is done on the device, too, and has come out well.

        Raises:
            PipertError: a loss is not finite; and what :meth:`pipert.Engine.step` raises.
        """
        self.lanes.wait()
        self._loss.check(losses)

    def peak_activation_bytes(self) -> dict[int, int]:
        """Return the peak of the last step, per rank of this process."""
        return {rank: meter.peak for rank, meter in self._meters.items()}

    def discard(self) -> None:
        """Forget everything unfinished, after a step that failed."""
        self._loss.clear()
        self._feed.clear()
        self._vocab.clear()
        for driver in self._drivers.values():
            driver.discard()

    def close(self) -> None:
        """Stop the lanes and leave the other ranks."""
        self.lanes.close()

    def _make_drivers(self, settings: Settings) -> dict[Replica, Driver]:
        plan = self.plan

        def between_stages() -> list[Handover]:
            return [Kept(plan.num_microbatches) for _ in range(plan.num_stages - 1)]

        # Stage s reads activations[s] and writes activations[s + 1]; it reads grads[s + 1] and writes grads[s].
        activations: list[Handover] = [self._feed, *between_stages(), self._loss]
        grads: list[Handover] = [Kept(plan.num_microbatches), *between_stages(), self._loss]
        drivers = {}
        for route in routes(plan, settings.ranks):
            stage, microbatches = route.stage, route.microbatches
            ports = Ports(
                inputs=self._source(microbatches, route.recv_inputs, activations[stage]),
                outputs=self._sink(microbatches, route.send_outputs, activations[stage + 1]),
                grads=self._source(microbatches, route.recv_grads, grads[stage + 1]),
                input_grads=self._sink(microbatches, route.send_grads, grads[stage]),
            )
            ports = self._vocab.ports(route.rank, stage, ports)
            drivers[route.rank, stage] = self._make_driver(route, ports, settings)
        return drivers

    def _make_driver(self, route: Route, ports: Ports, settings: Settings) -> Driver:
        return Driver(
            settings.stages[route.rank, route.stage],
            route.stage,
            route.rank,
            self.plan.num_microbatches,
            settings.seed,
            ports,
            self._meters[route.rank],
            settings.speculation if self.training else None,
        )

    def _source(self, microbatches: Sequence[int], recv_ops: Sequence[int], here: Source) -> Source:
        """Return where ``microbatches`` come from: another rank where there is a RECV, else ``here``."""
        inbox = Inbox(self.lanes, recv_ops, [self.plan.op_slot[op] for op in recv_ops])
        ways = [inbox if op >= 0 else here for op in recv_ops]
        used = {ways[microbatch] for microbatch in microbatches}
        return Sources(ways) if len(used) > 1 else used.pop() if used else here

    def _sink(self, microbatches: Sequence[int], send_ops: Sequence[int], here: Sink) -> Sink:
        """Return where ``microbatches`` go: on the lane of their SEND where there is one, else ``here``."""
        lanes = {self.plan.op_lane[op] for op in send_ops if op >= 0}
        outboxes = {
            lane: Outbox(self._send_lanes.setdefault(lane, SendLane(self.lanes.post)), send_ops, self.lanes.device)
            for lane in lanes
        }
        ways = [outboxes[self.plan.op_lane[op]] if op >= 0 else here for op in send_ops]
        used = {ways[microbatch] for microbatch in microbatches}
        return Sinks(ways) if len(used) > 1 else used.pop() if used else here

    def _make_handlers(self, ranks: Collection[int]) -> list[Handler]:
        made: dict[tuple[OpKind, Replica, bool], Handler] = {}
        of_ranks = {} if self._speculation is None else {rank: self._rank_ports(rank) for rank in ranks}

        def handler(op: Op, rank: int, put_off: bool = False) -> Handler:
            if op.kind.scope is Scope.RANK:
                assert self._speculation is not None
                return self._speculation.handler(op.kind, rank, of_ranks[rank])
            if op.kind.scope in (Scope.SHARD, Scope.MEETING):
                return self._vocab.handler(op, rank)
            key = op.kind, (rank, op.stage), put_off
            if key not in made:
                made[key] = self._drivers[rank, op.stage].handler(op.kind, training=self.training, put_off=put_off)
            return made[key]

        ops = compute_ops(self.plan, ranks)
        return [
            _one_after_the_other([(handler(part, rank), part.microbatch) for part in op.parts])
            if op.parts
            else handler(op, rank, put_off)
            for (rank, op), put_off in zip(ops, self._put_off(ops), strict=True)
        ]

    def _rank_ports(self, rank: int) -> RankPorts:
        transfers = rank_transfers(self.plan, rank)

        def source(kind: OpKind) -> Source | None:
            op = transfers.get(kind)
            return None if op is None else Inbox(self.lanes, [op], [self.plan.op_slot[op]])

        def sink(kind: OpKind) -> Sink | None:
            op = transfers.get(kind)
            if op is None:
                return None
            return Outbox(
                self._send_lanes.setdefault(self.plan.op_lane[op], SendLane(self.lanes.post)), [op], self.lanes.device
            )

        return RankPorts(
            source(OpKind.RECV_NORM), sink(OpKind.SEND_NORM), source(OpKind.RECV_TOTAL), sink(OpKind.SEND_TOTAL)
        )

    def _put_off(self, ops: Sequence[tuple[int, Op]]) -> list[bool]:
        """Tell of each op whether it is a W of a stage that computes it together with the next op of its rank."""
        following: dict[int, Op] = {}
        result = []
        for rank, op in reversed(ops):
            follower = following.get(rank, op)
            stage = self._drivers[rank, op.stage].stage if op.kind is OpKind.WEIGHT_GRAD else None
            batches = isinstance(stage, Stage) and stage.batches_weight_grads
            result.append(batches and follower is not op and (follower.kind, follower.stage) == (op.kind, op.stage))
            following[rank] = op
        return result[::-1]


def _one_after_the_other(parts: list[tuple[Handler, int]]) -> Handler:
    """Return the handler of an overlapped pair."""

    def handle(_: int) -> None:
        for run, microbatch in parts:
            run(microbatch)

    return handle
