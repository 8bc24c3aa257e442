"""What a model is tuned for: ranks, their speeds, their links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipert.costs import Costs, Link
from pipert.tune.partition import Cut, slices
from pipert.tune.profile import Layer, stage_costs


@dataclass(frozen=True, slots=True)
class Machine:
    """The ranks of a pipeline.

    Attributes:
        num_ranks: p.
        rank_speed: per rank, how fast it computes; empty: 1 for each.
        p2p: latency of a transfer, in ms.
        bandwidth: bytes per ms of each link; None: transfers take their latency only.
        message_bytes: the size of a transfer, where a bandwidth is given and the profile does not say it.
        links: (source, destination) → the speed of a link that differs.
        memory_limit: the most bytes of activation that a rank may hold; None: no limit.
    """

    num_ranks: int
    rank_speed: tuple[float, ...] = ()
    p2p: float = 0.0
    bandwidth: float | None = None
    message_bytes: float = 0.0
    links: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    memory_limit: float | None = None

    @property
    def is_even(self) -> bool:
        """Whether all ranks and links are alike."""
        return not self.links and len(set(self.rank_speed)) <= 1

    def speed(self, rank: int) -> float:
        """Return how fast a rank computes."""
        return self.rank_speed[rank] if self.rank_speed else 1.0

    def costs(self, layers: Sequence[Layer], cut: Cut) -> Costs:
        """Return the costs of a cut of the layers.

        All transfers have the size of the largest one, as costs know one size only.
        """
        parts = [layers[part] for part in slices(cut)]
        if len(parts) == 1:
            return Costs.per_stage([stage_costs(layers)], rank_speed=self.rank_speed)
        largest = max(part[-1].bytes_out for part in parts[:-1]) or self.message_bytes
        return Costs.per_stage(
            [stage_costs(part) for part in parts],
            p2p=self.p2p,
            bandwidth=self.bandwidth,
            message_bytes=largest if self.message_bytes else 0.0,
            links=self.links,
            rank_speed=self.rank_speed,
        )
