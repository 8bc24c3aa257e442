"""What ops cost: the times, transfer speeds and activation sizes that the simulator runs a plan on.

Times are plain numbers in one unit of the caller's choice (milliseconds, or 1 = one forward); activation sizes too
(bytes, or 1 = one stage-microbatch).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipert.errors import ConfigError
from pipert.ops import OpKind, Scope

if TYPE_CHECKING:
    from pipert.ir import Op, Program
    from pipert.plan import Plan
    from pipert.trace import Trace


@dataclasses.dataclass(frozen=True, slots=True)
class StageCosts:
    """The cost of one stage's ops on one microbatch.

    An activation is held in three steps: ``act`` of it from the start of F (of R, where the stage is recomputed) to the
    end of I, ``act_w`` of that on to the end of W, ``act_kept`` of that on to the end of the step. A full backward is I
    and W at once.

    Attributes:
        F: time of the forward.
        I: time of the input gradient.
        W: time of the weight gradient.
        B: time of the full backward; ``None`` means ``I + W``.
        R: time of recomputing the forward; ``None`` means ``F``.
        act: activation that is held before I.
        act_w: the part of ``act`` that is held before W.
        act_kept: the part of ``act_w`` that is held after W.
        unshard: time of gathering the stage's sharded parameters.
        reshard: time of letting them go again.
        reduce_grad: time of summing its gradients over the data-parallel ranks.
        opt: time of the optimizer on its parameters.
        validate: time of checking the optimizer's step afterwards.
        microbatch_scale: per microbatch, what its F, I, W, B and R take times the above (packed sequences: as many
            tokens, so as large an activation, but more or less attention between them). Empty: 1 for each.

    Raises:
        ConfigError: a value is negative or not finite, or a part exceeds what it is a part of.
    """

    F: float = 1.0
    I: float = 1.0  # noqa: E741
    W: float = 1.0
    B: float | None = None
    R: float | None = None
    act: float = 1.0
    act_w: float = 0.0
    act_kept: float = 0.0
    unshard: float = 0.0
    reshard: float = 0.0
    reduce_grad: float = 0.0
    opt: float = 0.0
    validate: float = 0.0
    microbatch_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in SIZE_NAMES:
            check_size(name, getattr(self, name))
        check_sizes("microbatch_scale", self.microbatch_scale)
        object.__setattr__(self, "microbatch_scale", tuple(self.microbatch_scale))
        for part, whole in (("act_w", "act"), ("act_kept", "act_w")):
            if getattr(self, part) > getattr(self, whole):
                sizes = f"{part}={getattr(self, part):g} is a part of {whole}={getattr(self, whole):g}"
                raise ConfigError(f"{sizes} and cannot exceed it")

    @property
    def full_backward(self) -> float:
        """The time of B."""
        return self.I + self.W if self.B is None else self.B

    @property
    def recompute(self) -> float:
        """The time of R."""
        return self.F if self.R is None else self.R

    def time_of(self, kind: OpKind) -> float:
        """Return the time of one op, before `microbatch_scale`; 0 for kinds that are not a stage's own.

        A kind that is for a rank takes the times of all the rank's stages together.
        """
        name = _TIME_NAMES.get(kind.text)
        return 0.0 if name is None else float(getattr(self, name))

    def scale_of(self, microbatch: int) -> float:
        """Return what the times of ``microbatch`` are multiplied with."""
        return self.microbatch_scale[microbatch] if self.microbatch_scale else 1.0

    def scaled(self, share: float) -> StageCosts:
        """Multiply every time and size by ``share``."""
        values = {name: getattr(self, name) for name in SIZE_NAMES}
        return dataclasses.replace(self, **{name: value * share for name, value in values.items() if value is not None})


@dataclasses.dataclass(frozen=True, slots=True)
class VocabCosts:
    """The cost of one microbatch's passes over the vocabulary, which all ranks share evenly: of any one rank's share.

    The meetings of all ranks take their times beside the compute ops.

    Attributes:
        S: time of the logits and their statistics; in Algorithm 2 of the products of the input gradient, too.
        T: time of the weight gradient; in Algorithm 1 of the input gradient's product, too.
        embed: time of looking up the tokens of the rank's shard.
        embed_w: time of the gradient of the rank's shard of the embedding.
        vembed: time of summing the looked-up parts at stage 0.
        vbcast: time of sending the last stage's output to all ranks.
        vstats: time of gathering the statistics.
        vgrad: time of summing the input gradient at the last stage.
        vembed_grad: time of sending the gradient of stage 0's input to all ranks.
        act_s: what a rank holds from the start of S to the end of T, in the unit of `StageCosts.act`.

    Raises:
        ConfigError: a value is negative or not finite.
    """

    S: float = 1.0
    T: float = 1.0
    embed: float = 0.0
    embed_w: float = 0.0
    vembed: float = 0.0
    vbcast: float = 0.0
    vstats: float = 0.0
    vgrad: float = 0.0
    vembed_grad: float = 0.0
    act_s: float = 0.0

    def __post_init__(self) -> None:
        for name in VOCAB_NAMES:
            check_size(name, getattr(self, name))

    @staticmethod
    def name_of(kind: OpKind) -> str:
        """Return the field that has the time of a kind that is about the vocabulary."""
        return kind.text if kind in (OpKind.SCORE, OpKind.SCORE_W) else kind.text.lower()

    def time_of(self, kind: OpKind) -> float:
        """Return the time of one op, on a rank of speed 1."""
        return float(getattr(self, self.name_of(kind)))


VOCAB_NAMES = tuple(field.name for field in dataclasses.fields(VocabCosts))
"""The fields of `VocabCosts`."""

SIZE_NAMES = tuple(field.name for field in dataclasses.fields(StageCosts) if field.name != "microbatch_scale")
"""The fields of `StageCosts` that are one number."""

_TIME_NAMES = {"F": "F", "I": "I", "W": "W", "B": "full_backward", "R": "recompute"} | {
    name.upper(): name for name in ("unshard", "reshard", "reduce_grad", "opt", "validate")
}


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """How fast one directed edge between two ranks is; ``None`` means as fast as the others.

    Attributes:
        latency: of a transfer, in place of `Costs.p2p`.
        bandwidth: bytes per unit of time, in place of `Costs.bandwidth`.

    Raises:
        ConfigError: a value is negative or not finite, or the bandwidth is 0.
    """

    latency: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        check_size("latency", self.latency)
        _check_positive("bandwidth", self.bandwidth)


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a whole plan. Made by `per_rank`, `per_stage`, `parse`, `load` or `from_trace`.

    Attributes:
        stages: one entry per stage, or, where ``whole_rank``, a single one for a rank's whole share.
        whole_rank: whether ``stages`` holds a rank's whole share, spread evenly over the stages of that rank.
        p2p: latency of a transfer; it occupies nothing.
        bandwidth: bytes per unit of time on one edge; ``None`` means that transfers do not occupy their lanes.
        message_bytes: bytes of one microbatch's transfer, which occupies its edge for ``message_bytes / bandwidth``;
            other transfers are of a few bytes and occupy nothing.
        host_cores: this many cores are shared evenly by the compute ops that run at one time, none of which uses more
            than one; transfers use none. ``None`` means a core for every rank.
        links: (source rank, destination rank) → the speed of that edge, where it is not that of all.
        rank_speed: per rank, how fast it computes: an op takes its time divided by this. Empty: 1 for each.
        overlap: an overlapped pair takes this times the sum of its two parts.
        recut: whether plans may have another number of stages: the model is then cut anew into pieces of the same
            length, as if the costs of each stage were spread evenly over it.
        vocab: of the passes over the vocabulary; ``None`` where they are not known. Plans that have such passes need
            them.

    Raises:
        ConfigError: a value is negative, not finite, or missing; the message names it.
    """

    stages: tuple[StageCosts, ...]
    whole_rank: bool
    p2p: float = 0.0
    bandwidth: float | None = None
    message_bytes: float = 0.0
    host_cores: float | None = None
    links: Mapping[tuple[int, int], Link] = dataclasses.field(default_factory=dict, hash=False)
    rank_speed: tuple[float, ...] = ()
    overlap: float = 1.0
    recut: bool = False
    vocab: VocabCosts | None = None

    def __post_init__(self) -> None:
        check_size("p2p", self.p2p)
        check_size("message_bytes", self.message_bytes)
        check_sizes("rank_speed", self.rank_speed)
        for name in ("bandwidth", "host_cores", "overlap"):
            _check_positive(name, getattr(self, name))
        for speed in self.rank_speed:
            _check_positive("rank_speed", speed)
        limited = self.bandwidth is not None or any(link.bandwidth is not None for link in self.links.values())
        if limited != (self.message_bytes > 0):
            raise ConfigError("bandwidth and message_bytes belong together: give both, or neither")
        for source, destination in self.links:
            if source == destination or min(source, destination) < 0:
                raise ConfigError(f"a link leads from one rank to another, not from {source} to {destination}")
        object.__setattr__(self, "links", dict(self.links))
        object.__setattr__(self, "rank_speed", tuple(self.rank_speed))

    @classmethod
    def per_rank(
        cls,
        F: float = 1.0,
        I: float = 1.0,  # noqa: E741
        W: float = 1.0,
        B: float | None = None,
        R: float | None = None,
        p2p: float = 0.0,
        bandwidth: float | None = None,
        message_bytes: float = 0.0,
        act: float = 1.0,
        act_w: float = 0.0,
        host_cores: float | None = None,
        *,
        act_kept: float = 0.0,
        unshard: float = 0.0,
        reshard: float = 0.0,
        reduce_grad: float = 0.0,
        opt: float = 0.0,
        validate: float = 0.0,
        microbatch_scale: Sequence[float] = (),
        links: Mapping[tuple[int, int], Link] | None = None,
        rank_speed: Sequence[float] = (),
        overlap: float = 1.0,
        vocab: VocabCosts | None = None,
    ) -> Costs:
        """Costs of a rank's whole share of one microbatch, spread evenly over the stages that stand on it.

        The arguments are those of `StageCosts` and `Costs`.
        """
        share = StageCosts(
            F=F,
            I=I,
            W=W,
            B=B,
            R=R,
            act=act,
            act_w=act_w,
            act_kept=act_kept,
            unshard=unshard,
            reshard=reshard,
            reduce_grad=reduce_grad,
            opt=opt,
            validate=validate,
            microbatch_scale=tuple(microbatch_scale),
        )
        transfers = (p2p, bandwidth, message_bytes, host_cores, links or {})
        return cls((share,), True, *transfers, tuple(rank_speed), overlap, vocab=vocab)

    @classmethod
    def per_stage(
        cls,
        stages: Sequence[StageCosts],
        p2p: float = 0.0,
        bandwidth: float | None = None,
        message_bytes: float = 0.0,
        host_cores: float | None = None,
        *,
        links: Mapping[tuple[int, int], Link] | None = None,
        rank_speed: Sequence[float] = (),
        overlap: float = 1.0,
        vocab: VocabCosts | None = None,
    ) -> Costs:
        """Costs stage by stage; ``stages[s]`` is stage ``s``."""
        transfers = (p2p, bandwidth, message_bytes, host_cores, links or {})
        return cls(tuple(stages), False, *transfers, tuple(rank_speed), overlap, vocab=vocab)

    @classmethod
    def parse(cls, text: str) -> Costs:
        """Costs per rank from ``"F=1,I=1,W=1,p2p=0,act=1,act_w=0.37"``; the names are the arguments of `per_rank`.

        ``rank_speed`` and ``microbatch_scale`` are lists: ``rank_speed=1:1:0.5:1``. Of the times give F, I and W, and
        B where it is not I + W; or F and B, of which I and W are then the halves; or none, and F = I = W = S = T = 1.
        Plans with passes over the vocabulary need the names of `VocabCosts`, too: S and T, and maybe more.

        Raises:
            ConfigError: an item is malformed, unknown, missing or given twice; the message names it.
        """
        from pipert.costs_text import parse

        return parse(text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Costs:
        """Costs from a TOML file. Its names are the arguments of `per_rank`, for a rank's whole share.

        Where stages differ, each has a ``[[stage]]`` table with the names of `StageCosts`, and only what is common to
        all stands at the top: ``p2p``, ``bandwidth``, ``message_bytes``, ``host_cores``, ``rank_speed``, ``overlap``,
        the names of `VocabCosts` and, unless the tables have their own, ``microbatch_scale``. An edge with another
        speed has a ``[[link]]`` table: ``src`` and ``dst`` (ranks), ``latency`` and ``bandwidth``.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or holds something else than the above, or too little.
        """
        from pipert.costs_text import load

        return load(path)

    @classmethod
    def from_trace(cls, trace: Trace) -> Costs:
        """Costs as they were in one step, for plans of any number of stages: see `pipert.trace.calibrate`."""
        from pipert.trace.calibrate import calibrate

        return calibrate(trace)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML file that `load` reads; it holds the same costs, exactly.

        Raises:
            ConfigError: the file cannot be written.
        """
        from pipert.costs_text import dumps

        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(dumps(self))
        except OSError as error:
            raise ConfigError(f"cannot write {os.fspath(path)!r}: {error.strerror}") from error

    @property
    def occupancy(self) -> float:
        """The time for which one transfer occupies its edge, on edges that have no link of their own."""
        return 0.0 if self.bandwidth is None else self.message_bytes / self.bandwidth

    def transfer(self, source: int, destination: int) -> tuple[float, float]:
        """Return (latency, occupancy) of one transfer from rank to rank."""
        link = self.links.get((source, destination), Link())
        latency = self.p2p if link.latency is None else link.latency
        return latency, self.occupancy if link.bandwidth is None else self.message_bytes / link.bandwidth

    @property
    def known_vocab(self) -> VocabCosts:
        """The costs of the passes over the vocabulary.

        Raises:
            ConfigError: they are not known.
        """
        if self.vocab is None:
            raise ConfigError("the costs lack those of the passes over the vocabulary: give S and T with the others")
        return self.vocab

    def speed_of(self, rank: int) -> float:
        """Return how fast ``rank`` computes; a rank of speed 1 takes the times as they are given."""
        return self.rank_speed[rank] if self.rank_speed else 1.0

    def op_time(self, op: Op, rank: int, stages: Sequence[StageCosts]) -> float:
        """Return how long a microbatch's compute op (a pair: both of its parts) takes on ``rank``.

        Args:
            op: the op, of a stage or of the rank's shard of the vocabulary.
            rank: where it runs.
            stages: what `for_plan` gave.
        """
        if op.kind.scope is Scope.SHARD:
            return self.known_vocab.time_of(op.kind) / self.speed_of(rank)
        time = sum(
            stages[part.stage].time_of(part.kind) * stages[part.stage].scale_of(part.microbatch) for part in op.unpacked
        )
        return time * (self.overlap if op.parts else 1.0) / self.speed_of(rank)

    def for_plan(self, plan: Plan | Program) -> tuple[StageCosts, ...]:
        """Spread the costs over the stages of ``plan``. A rank's share goes to its chunks of the first path.

        Raises:
            ConfigError: the costs are for other numbers of stages, ranks or microbatches than the plan's.
        """
        where = f"plan {plan.name!r}"
        if self.rank_speed and len(self.rank_speed) != plan.num_ranks:
            raise ConfigError(f"rank_speed is for {len(self.rank_speed)} ranks, but {where} has {plan.num_ranks}")
        for source, destination in self.links:
            if max(source, destination) >= plan.num_ranks:
                raise ConfigError(
                    f"a link leads from rank {source} to rank {destination}, but {where} has {plan.num_ranks} ranks"
                )
        for stage in self.stages:
            scale = stage.microbatch_scale
            if scale and len(scale) != plan.num_microbatches:
                raise ConfigError(
                    f"microbatch_scale is for {len(scale)} microbatches, but {where} has {plan.num_microbatches}"
                )
        if self.whole_rank:
            path = plan.paths[0]
            chunks = Counter(path)
            shares = {count: self.stages[0].scaled(1 / count) for count in set(chunks.values())}
            return tuple(shares[chunks[rank]] for rank in path)
        if self.recut and not any(stage.microbatch_scale for stage in self.stages):
            return _recut(self.stages, plan.num_stages)
        if len(self.stages) != plan.num_stages:
            raise ConfigError(f"costs are for {len(self.stages)} stages, but {where} has {plan.num_stages}")
        return self.stages


def _recut(stages: tuple[StageCosts, ...], num_pieces: int) -> tuple[StageCosts, ...]:
    """Cut a model into pieces of the same length, if each of its stages has the same costs all along."""
    if len(stages) == num_pieces:
        return stages
    whole = [{name: getattr(stage, name) for name in SIZE_NAMES} for stage in stages]
    for values, stage in zip(whole, stages, strict=True):
        values |= {"B": stage.full_backward, "R": stage.recompute}
    pieces = []
    for piece in range(num_pieces):
        begin, end = piece * len(stages) / num_pieces, (piece + 1) * len(stages) / num_pieces
        shares = [max(0.0, min(end, stage + 1) - max(begin, stage)) for stage in range(len(stages))]
        sums = {
            name: sum(share * values[name] for share, values in zip(shares, whole, strict=True)) for name in SIZE_NAMES
        }
        pieces.append(StageCosts(**sums))
    return tuple(pieces)


def tolerated(memory_limit: float | None) -> float:
    """Return how much activation, added up in floats, still keeps a limit; infinite if there is none."""
    return math.inf if memory_limit is None else memory_limit * (1 + 1e-9)


def check_size(name: str, value: object) -> None:
    """Refuse a value that is neither None nor a finite number from 0 on."""
    if value is None or _is_size(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    raise ConfigError(f"{name} must be finite and not negative, not {value!r}")


def check_sizes(name: str, values: object) -> None:
    """Refuse a value that is not a list of finite numbers from 0 on."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} must be a list of numbers, not {values!r}")
    for index, value in enumerate(values):
        if not _is_size(value):
            check_size(f"{name}[{index}]", "nothing" if value is None else value)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _check_positive(name: str, value: float | None) -> None:
    check_size(name, value)
    if value == 0:
        raise ConfigError(f"{name} must be positive; leave it out where it limits nothing")
