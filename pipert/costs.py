"""What ops cost: the times, transfer speeds and activation sizes that the simulator runs a plan on.

Times are plain numbers in one unit of the caller's choice (milliseconds, or 1 = one forward); activation sizes too
(bytes, or 1 = one stage-microbatch).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipert.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pipert.ir import Program
    from pipert.plan import Plan


@dataclasses.dataclass(frozen=True, slots=True)
class StageCosts:
    """The cost of one stage's ops on one microbatch.

    Attributes:
        F: time of the forward.
        I: time of the input gradient.
        W: time of the weight gradient.
        B: time of the full backward; ``None`` means ``I + W``.
        R: time of recomputing the forward; ``None`` means ``F``.
        act: activation that is held from the start of F (of R, where the stage is recomputed) to the end of I.
        act_w: the part of ``act`` that is held on from I to the end of W. A full backward frees everything at its end.

    An overlapped pair of a forward and a backward costs the sum of its two parts.

    Raises:
        ConfigError: a value is negative or not finite, or ``act_w`` exceeds ``act``.
    """

    F: float = 1.0
    I: float = 1.0  # noqa: E741
    W: float = 1.0
    B: float | None = None
    R: float | None = None
    act: float = 1.0
    act_w: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_size(field.name, getattr(self, field.name))
        if self.act_w > self.act:
            raise ConfigError(f"act_w={self.act_w:g} is a part of act={self.act:g} and cannot exceed it")

    @property
    def full_backward(self) -> float:
        """The time of B."""
        return self.I + self.W if self.B is None else self.B

    @property
    def recompute(self) -> float:
        """The time of R."""
        return self.F if self.R is None else self.R

    def scaled(self, share: float) -> StageCosts:
        """Multiply every cost by ``share``."""
        return StageCosts(
            F=self.F * share,
            I=self.I * share,
            W=self.W * share,
            B=None if self.B is None else self.B * share,
            R=None if self.R is None else self.R * share,
            act=self.act * share,
            act_w=self.act_w * share,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a whole plan. Made by `per_rank`, `per_stage`, `parse` or `load`.

    Attributes:
        stages: one entry per stage, or, where ``whole_rank``, a single one for a rank's whole share.
        whole_rank: whether ``stages`` holds a rank's whole share, spread evenly over the stages of that rank.
        p2p: latency of a transfer; it occupies nothing.
        bandwidth: bytes per unit of time on one edge; ``None`` means that transfers do not occupy their lanes.
        message_bytes: bytes of one transfer; each occupies its edge for ``message_bytes / bandwidth``.
        host_cores: this many cores are shared evenly by the compute ops that run at one time, none of which uses more
            than one; transfers use none. ``None`` means a core for every rank.
    """

    stages: tuple[StageCosts, ...]
    whole_rank: bool
    p2p: float = 0.0
    bandwidth: float | None = None
    message_bytes: float = 0.0
    host_cores: float | None = None

    def __post_init__(self) -> None:
        _check_size("p2p", self.p2p)
        _check_size("message_bytes", self.message_bytes)
        for name, value in (("bandwidth", self.bandwidth), ("host_cores", self.host_cores)):
            _check_size(name, value)
            if value == 0:
                raise ConfigError(f"{name} must be positive; leave it out for no limit")
        if (self.bandwidth is None) != (self.message_bytes == 0):
            raise ConfigError("bandwidth and message_bytes belong together: give both, or neither")

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
    ) -> Costs:
        """Costs of a rank's whole share of one microbatch, spread evenly over the stages that stand on it.

        The arguments are those of `StageCosts` and `Costs`.
        """
        share = StageCosts(F=F, I=I, W=W, B=B, R=R, act=act, act_w=act_w)
        return cls((share,), True, p2p, bandwidth, message_bytes, host_cores)

    @classmethod
    def per_stage(
        cls,
        stages: Sequence[StageCosts],
        p2p: float = 0.0,
        bandwidth: float | None = None,
        message_bytes: float = 0.0,
        host_cores: float | None = None,
    ) -> Costs:
        """Costs stage by stage; ``stages[s]`` is stage ``s``."""
        return cls(tuple(stages), False, p2p, bandwidth, message_bytes, host_cores)

    @classmethod
    def parse(cls, text: str) -> Costs:
        """Costs per rank from ``"F=1,I=1,W=1,p2p=0,act=1,act_w=0.37"``; the names are the arguments of `per_rank`.

        Raises:
            ConfigError: an item is malformed, unknown or given twice; the message names it.
        """
        items = [item.strip() for item in text.split(",") if item.strip()]
        pairs = [_split_item(item) for item in items]
        repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if repeated:
            raise ConfigError(f"costs: {repeated[0]!r} is given more than once")
        return _from_mapping(dict(pairs))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Costs:
        """Costs from a TOML file: the transfer values at its top, then one ``[[stage]]`` table for each stage.

        ``p2p``, ``bandwidth``, ``message_bytes`` and ``host_cores`` stand at the top, ``F``, ``I``, ``W``, ``B``,
        ``R``, ``act`` and ``act_w`` in the tables. Without tables, all of them stand at the top and are per rank.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or holds something else than the above.
        """
        try:
            with open(path, "rb") as file:
                values: dict[str, Any] = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read costs file {os.fspath(path)!r}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"costs file {os.fspath(path)!r} is not TOML: {error}") from error
        try:
            return _from_tables(values)
        except ConfigError as error:
            raise ConfigError(f"costs file {os.fspath(path)!r}: {error}") from error

    @property
    def occupancy(self) -> float:
        """The time for which one transfer occupies its edge."""
        return 0.0 if self.bandwidth is None else self.message_bytes / self.bandwidth

    def for_plan(self, plan: Plan | Program) -> tuple[StageCosts, ...]:
        """Spread the costs over the stages of ``plan``. A rank's share goes to its chunks of the first path.

        Raises:
            ConfigError: the costs are per stage and the plan has another number of stages.
        """
        if self.whole_rank:
            path = plan.paths[0]
            chunks = Counter(path)
            shares = {rank: self.stages[0].scaled(1 / count) for rank, count in chunks.items()}
            return tuple(shares[rank] for rank in path)
        if len(self.stages) != plan.num_stages:
            raise ConfigError(f"costs are for {len(self.stages)} stages, but plan {plan.name!r} has {plan.num_stages}")
        return self.stages


_STAGE_NAMES = tuple(field.name for field in dataclasses.fields(StageCosts))
_TRANSFER_NAMES = ("p2p", "bandwidth", "message_bytes", "host_cores")


def _check_size(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name} must be finite and not negative, not {value!r}")


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown cost {name!r}{hint}")


def _split_item(item: str) -> tuple[str, float]:
    name, equals, value = item.partition("=")
    if not equals:
        raise ConfigError(f"costs: {item!r} is not NAME=NUMBER")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ConfigError(f"costs: {value.strip()!r} in {item!r} is not a number") from None


def _from_mapping(values: Mapping[str, Any]) -> Costs:
    _check_names(tuple(values), _STAGE_NAMES + _TRANSFER_NAMES)
    return Costs.per_rank(**values)


def _from_tables(values: Mapping[str, Any]) -> Costs:
    if "stage" not in values:
        return _from_mapping(values)
    tables = values["stage"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("'stage' must be [[stage]] tables")
    transfer = {name: value for name, value in values.items() if name != "stage"}
    _check_names(tuple(transfer), _TRANSFER_NAMES)
    for table in tables:
        _check_names(tuple(table), _STAGE_NAMES)
    return Costs.per_stage([StageCosts(**table) for table in tables], **transfer)
