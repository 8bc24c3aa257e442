"""Steps whose ops take a little more or less time than they should, and ranks that are slow: what a schedule is then.

>>> spread = pipert.noise.simulate(plan, costs, Noise.parse("cv=0.05,straggler=2:1.3"), num_steps=200, seed=0)
>>> print(spread)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipert import _core
from pipert.costs import Costs, check_size
from pipert.errors import ConfigError
from pipert.plan import Plan
from pipert.sim import clock_costs
from pipert.trace.report import bubble
from pipert.trace.table import table

_OPS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Noise:
    """How op times vary.

    Attributes:
        cv: every op, transfers included, takes its time multiplied by a log-normal factor of mean 1 whose standard
            deviation is this (the coefficient of variation), independently of all others.
        stragglers: (rank, factor): all compute ops of the rank take this many times longer.
        any_straggler: the same in each step for one rank, picked at random.

    Raises:
        ConfigError: a value is negative or not finite, a factor is 0, or a rank is given twice.
    """

    cv: float = 0.0
    stragglers: tuple[tuple[int, float], ...] = ()
    any_straggler: float = 1.0

    def __post_init__(self) -> None:
        check_size("cv", self.cv)
        for rank, factor in (*self.stragglers, ("any", self.any_straggler)):
            check_size(f"the factor of straggler {rank}", factor)
            if factor == 0:
                raise ConfigError(f"the factor of straggler {rank} must be positive")
        ranks = [rank for rank, _ in self.stragglers]
        if len(set(ranks)) != len(ranks):
            raise ConfigError("a rank is given as a straggler twice")

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Read ``"cv=0.05,straggler=2:1.3"``; ``straggler=RANK:FACTOR`` may be repeated, RANK may be ``any``.

        Raises:
            ConfigError: an item is malformed, unknown or given twice; the message names it.
        """
        once: dict[str, float] = {}
        stragglers: list[tuple[int, float]] = []
        for item in (item.strip() for item in text.split(",") if item.strip()):
            name, _, value = item.partition("=")
            rank, _, factor = value.partition(":")
            try:
                if name == "straggler" and rank != "any":
                    stragglers.append((int(rank), float(factor)))
                    continue
                field = {"cv": "cv", "straggler": "any_straggler"}[name]
                number = float(value if name == "cv" else factor)
            except (KeyError, ValueError):
                raise ConfigError(f"noise: {item!r} is not cv=NUMBER or straggler=RANK:FACTOR") from None
            if field in once:
                raise ConfigError(f"noise: {name} is given more than once")
            once[field] = number
        return cls(**once, stragglers=tuple(stragglers))

    def slow_down(self, costs: Costs, num_ranks: int) -> Costs:
        """Return the costs with the stragglers as slow as they are.

        Raises:
            ConfigError: there is no such rank.
        """
        speed = list(costs.rank_speed or (1.0,) * num_ranks)
        for rank, factor in self.stragglers:
            if not 0 <= rank < num_ranks:
                raise ConfigError(f"straggler {rank} is no rank of 0 to {num_ranks - 1}")
            speed[rank] /= factor
        return dataclasses.replace(costs, rank_speed=tuple(speed)) if self.stragglers else costs


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a figure over many steps: 5 %, 50 % and 95 % of them are at most as large as this, and their mean."""

    p5: float
    p50: float
    p95: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Take the quantiles of some values, interpolated between them."""
        ordered = sorted(values)

        def quantile(share: float) -> float:
            place = share * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

        return cls(quantile(0.05), quantile(0.5), quantile(0.95), sum(ordered) / len(ordered))


@dataclass(frozen=True, slots=True)
class Spread:
    """The figures of `pipert.Report` over noisy steps."""

    noise: Noise
    num_steps: int
    seed: int
    makespan: Quantiles
    bubble_rate: Quantiles
    bubble_rate_span: Quantiles

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain numbers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [(f"{self.num_steps} noisy steps", "p5", "p50", "p95", "mean")]
        rows.append(("makespan", *(f"{value:.6g}" for value in dataclasses.astuple(self.makespan))))
        for name, figure in (("bubble", self.bubble_rate), ("bubble over the span", self.bubble_rate_span)):
            rows.append((name, *(f"{value:.2%}" for value in dataclasses.astuple(figure))))
        return table(rows, left=(0,))


def simulate(
    plan: Plan,
    costs: Costs,
    noise: Noise,
    *,
    num_steps: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Spread:
    """Simulate noisy steps of ``plan``; the same seed gives the same steps.

    Args:
        plan: what runs.
        costs: what its ops take on average.
        noise: how they vary.
        num_steps: how many steps.
        seed: of the random factors.
        progress: called now and then with the number of steps done since.

    Raises:
        ConfigError: the costs or the noise are for other sizes than the plan's, or there are no steps.
    """
    if num_steps < 1:
        raise ConfigError(f"there must be at least one noisy step, not {num_steps}")
    native = clock_costs(plan, noise.slow_down(costs, plan.num_ranks))
    steps: list[tuple[float, float, float]] = []
    at_once = max(1, _OPS_AT_ONCE // plan.num_ops)
    while len(steps) < num_steps:
        count = min(at_once, num_steps - len(steps))
        steps += _core.simulate_noisy(
            plan.native,
            native,
            op_cv=noise.cv,
            straggler=noise.any_straggler,
            seed=seed % 2**64,
            first_step=len(steps),
            num_steps=count,
        )
        if progress is not None:
            progress(count)
    return Spread(
        noise=noise,
        num_steps=num_steps,
        seed=seed,
        makespan=Quantiles.of([makespan for makespan, _, _ in steps]),
        bubble_rate=Quantiles.of([bubble(compute, makespan) for makespan, _, compute in steps]),
        bubble_rate_span=Quantiles.of([bubble(compute, span) for _, span, compute in steps]),
    )
