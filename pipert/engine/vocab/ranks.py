"""The passes of all ranks of a process, as a runner uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipert.engine.driver import Handler, Meter, Ports, named_failures
from pipert.engine.loss import Loss
from pipert.engine.meetings import GroupMeetings, LocalMeetings, Meetings
from pipert.engine.vocab.batches import batches
from pipert.engine.vocab.embedding import EmbeddingPasses
from pipert.engine.vocab.output import OutputPasses
from pipert.stages import Tensors

if TYPE_CHECKING:
    from pipert.engine.runner import Settings
    from pipert.ir import Op
    from pipert.plan import Plan


class VocabRanks:
    """Nothing where the plan does not split the vocabulary.

    Args:
        plan: what runs.
        settings: with what.
        loss: records the losses.
        meters: of the activations, per rank.
        check: raises what has failed, here or on another rank.
        training: whether the plan has backwards.
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        loss: Loss,
        meters: Mapping[int, Meter],
        check: Callable[[], None],
        *,
        training: bool,
    ) -> None:
        self._plan = plan
        self._step = 0
        self._reduction = settings.loss_reduction
        self._shards = settings.vocabulary
        self._meetings = _open_meetings(plan, settings, check)
        self._embeddings = {
            rank: EmbeddingPasses(plan, rank, shard, shard.embedding, self._meetings, training=training)
            for rank, shard in self._shards.items()
            if shard.embedding is not None
        }
        self._outputs = {
            rank: OutputPasses(
                plan, rank, shard, shard.output, self._meetings, loss, self._reduction, meters[rank], training=training
            )
            for rank, shard in self._shards.items()
            if shard.output is not None
        }

    def start(self, step: int, inputs: Sequence[Tensors], targets: Sequence[Any]) -> None:
        """Begin a step.

        Raises:
            ConfigError: inputs or targets that cannot be split.
        """
        self._step = step
        if not self._shards:
            return
        parts = batches(self._plan, inputs, targets, self._reduction)
        for embedding in self._embeddings.values():
            embedding.start(parts)
        for output in self._outputs.values():
            output.start(parts)

    def finish(self) -> None:
        """End a step."""
        for output in self._outputs.values():
            output.finish()
        for shard in self._shards.values():
            shard.finish()
        self._meetings.finish()

    def clear(self) -> None:
        """Forget everything unfinished, after a step that failed."""
        self._meetings.clear()
        for embedding in self._embeddings.values():
            embedding.clear()
        for output in self._outputs.values():
            output.clear()
        for shard in self._shards.values():
            shard.discard()

    def handler(self, op: Op, rank: int) -> Handler:
        """Return the function that the executor calls, with the microbatch, for ops like this one."""
        run = (self._embeddings[rank].handlers if rank in self._embeddings else {}).get(op.kind)
        run = run or self._outputs[rank].handlers[op.kind]
        return named_failures(run, op.kind, op.stage, rank, lambda: self._step)

    def ports(self, rank: int, stage: int, ports: Ports) -> Ports:
        """Return the four ends of a stage: at the model's ends, the passes stand in for some."""
        if stage == 0 and rank in self._embeddings:
            embedding = self._embeddings[rank]
            ports = replace(ports, inputs=embedding, input_grads=embedding)
        if stage == self._plan.num_stages - 1 and rank in self._outputs:
            output = self._outputs[rank]
            ports = replace(ports, outputs=output, grads=output)
        return ports


def _open_meetings(plan: Plan, settings: Settings, check: Callable[[], None]) -> Meetings:
    if settings.group is None or settings.session is None or not settings.vocabulary:
        return LocalMeetings(plan.num_ranks)
    return GroupMeetings(settings.group, settings.session, settings.device.torch_device, settings.timeout_ms, check)
