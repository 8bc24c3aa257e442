"""Programs in the form of the native search: compute ops by number, placement and costs as flat columns."""

from __future__ import annotations

from collections.abc import Sequence

from pipert import _core
from pipert.costs import Costs
from pipert.ir import Op, Program
from pipert.ops import OpKind

_PASSES = (OpKind.FORWARD, OpKind.INPUT_GRAD, OpKind.WEIGHT_GRAD)

Order = list[list[int]]
"""Per rank, its ops by number: (pass * num_stages + stage) * num_microbatches + microbatch, for the passes F, I, W."""


def search_problem(placed: Program, costs: Costs, memory_limits: Sequence[float]) -> _core.SearchProblem:
    """Describe the placement of ``placed`` with its costs; its order does not matter.

    What a rank keeps to the end of the step (``act_kept``) is taken off its limit for the whole step.

    Args:
        placed: a program that may be empty.
        costs: what its ops cost.
        memory_limits: per rank, the most activation that it may hold; ``math.inf`` for no limit.

    Raises:
        ConfigError: the costs are for other sizes.
    """
    stages = costs.for_plan(placed)
    num_ranks, num_microbatches = placed.num_ranks, placed.num_microbatches
    ranks = [placed.rank_of(stage, mb) for stage in range(placed.num_stages) for mb in range(num_microbatches)]
    scales = [stage.scale_of(microbatch) for stage in stages for microbatch in range(num_microbatches)]
    slowness = [scale / costs.speed_of(rank) for scale, rank in zip(scales, ranks, strict=True)]
    cell_stages = [stage for stage in stages for _ in range(num_microbatches)]
    kept = [0.0] * num_ranks
    for stage, rank in zip(cell_stages, ranks, strict=True):
        kept[rank] += stage.act_kept
    edges = [
        (0.0, 0.0) if source == destination else costs.transfer(source, destination)
        for source in range(num_ranks)
        for destination in range(num_ranks)
    ]
    return _core.SearchProblem(
        num_ranks=num_ranks,
        num_stages=placed.num_stages,
        num_microbatches=num_microbatches,
        rank_of_cell=ranks,
        time=[
            stage.time_of(kind) * slow for kind in _PASSES for stage, slow in zip(cell_stages, slowness, strict=True)
        ],
        latency=[latency for latency, _ in edges],
        occupancy=[occupancy for _, occupancy in edges],
        act=[stage.act - stage.act_kept for stage in stages],
        act_w=[stage.act_w - stage.act_kept for stage in stages],
        memory_limit=[limit - size for limit, size in zip(memory_limits, kept, strict=True)],
    )


def to_order(program: Program) -> Order:
    """Give the numbers of the ops of a program of F, I and W; of a pair those of its parts."""
    size = program.num_stages * program.num_microbatches
    first = {kind: number * size for number, kind in enumerate(_PASSES)}
    return [
        [
            first[part.kind] + part.stage * program.num_microbatches + part.microbatch
            for op in ops
            for part in op.unpacked
        ]
        for ops in program.ranks
    ]


def from_order(placed: Program, order: Order) -> Program:
    """Make the program of an order, with the name and the placement of ``placed``."""
    cells = [divmod(cell, placed.num_microbatches) for cell in range(placed.num_stages * placed.num_microbatches)]
    ops = [Op(kind, stage, microbatch) for kind in _PASSES for stage, microbatch in cells]
    return Program(placed.name, placed.paths, placed.path_of, tuple(tuple(ops[op] for op in row) for row in order))
