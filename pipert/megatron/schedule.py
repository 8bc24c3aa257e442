"""The plan of a step: the schedule that the user asked for, on the sizes that the script has."""

from __future__ import annotations

import itertools

from pipert import sources
from pipert.costs import Costs
from pipert.errors import ConfigError
from pipert.ir import Program
from pipert.lowering import compile
from pipert.megatron.options import Options
from pipert.ops import OpKind, Scope
from pipert.passes import vocab_parallel
from pipert.plan import Plan
from pipert.schedules import placement
from pipert.schedules.interleaved import group_by_group
from pipert.solve.auto import auto as search


def make_plan(options: Options, num_ranks: int, num_microbatches: int, num_chunks: int, group_size: int | None) -> Plan:
    """Return the plan for a step.

    Args:
        options: the user's choices.
        num_ranks: of the pipeline.
        num_microbatches: of the step.
        num_chunks: model chunks per rank.
        group_size: how many microbatches go through a chunk before the next chunk's turn, in ``interleaved``
            (``microbatch_group_size_per_vp_stage``).

    Raises:
        ConfigError, PlanError: sizes do not fit, the schedule is unknown, or the file is bad or for other sizes.
    """
    name = options.schedule or ("1f1b" if num_chunks == 1 else "interleaved")
    costs = options.parsed_costs()
    if name == "interleaved" and group_size not in (None, num_ranks):
        return _lowered(interleaved_in_groups(num_ranks, num_microbatches, num_chunks, group_size), options, costs)
    if name == "auto":  # which otherwise chooses a placement, too; here the model's chunks have one
        path = placement.loop(num_ranks, num_chunks)
        program = search([path], [0] * num_microbatches, costs or Costs.per_rank(), options.memory_limit)
        return _lowered(program, options, costs)
    takes_sizes = sources.takes_sizes(name)  # a file has its own
    source = sources.load(
        name,
        ranks=num_ranks if takes_sizes else None,
        microbatches=num_microbatches if takes_sizes else None,
        chunks=num_chunks if takes_sizes else None,
        costs=costs,
        memory_limit=options.memory_limit,
    )
    program = source.program()
    _check(name, program, num_ranks, num_microbatches, num_chunks)
    passes = {op.kind for row in program.ranks for op in row if op.kind.scope in (Scope.SHARD, Scope.MEETING)}
    if not passes:
        return _lowered(program, options, costs) if options.splits_vocabulary else source.plan()
    if not options.splits_vocabulary:
        raise ConfigError(f"{name} has passes over the vocabulary; with them, use --pipert-vocab-parallel 2")
    if OpKind.EMBED in passes:
        raise ConfigError(f"{name} splits the input embedding; --pipert-vocab-parallel splits the output layer alone")
    return source.plan()


def _lowered(program: Program, options: Options, costs: Costs | None) -> Plan:
    """Return the plan of a program, with passes over the vocabulary where they are asked for."""
    if options.splits_vocabulary:
        program = vocab_parallel(program, 2, costs, options.memory_limit, embedding=False)
    return compile(program)


def interleaved_in_groups(num_ranks: int, num_microbatches: int, num_chunks: int, group_size: int) -> Program:
    """Make interleaved 1F1B whose ranks take ``group_size`` microbatches through a chunk before the next one's turn.

    The order is that of Megatron's ``get_schedule_table``; with groups of p it is the schedule ``interleaved``.

    Raises:
        ConfigError: groups smaller than the pipeline, or larger than the step; or a last group smaller than the
            pipeline, which would wait for itself.
    """
    p, m = num_ranks, num_microbatches
    if not p <= group_size <= m:
        raise ConfigError(
            f"microbatch_group_size_per_vp_stage is {group_size}; it must be from {p} (ranks) to {m} (microbatches)"
        )
    groups = [range(start, min(start + group_size, m)) for start in range(0, m, group_size)]
    if len(groups[-1]) < p:
        raise ConfigError(
            f"num_microbatches={m} in groups of {group_size} (microbatch_group_size_per_vp_stage) leaves a last group "
            f"of {len(groups[-1])}, fewer than the pipeline's {p} ranks"
        )
    rows = []
    for rank in range(p):
        num_warmup = (num_chunks - 1) * group_size + 2 * (p - 1 - rank)
        rows.append(group_by_group(range(rank, p * num_chunks, p), groups, num_warmup))
    return Program.single_path("interleaved", placement.loop(p, num_chunks), m, rows)


def checkpoint_pattern(plan: Plan, rank: int, num_partly: int) -> dict[tuple[int, int], bool]:
    """Tell for each (stage, microbatch) of ``rank`` whether all of its activations are checkpointed.

    Of the microbatches that can be outstanding, the first ``num_partly`` checkpoint only some layers
    (``num_microbatches_with_partial_activation_checkpoints``; Korthikanti et al., arXiv 2205.05198, appendix C).
    """
    ops = [op for op, lane in zip(plan.ops, plan.op_lane, strict=True) if plan.lanes[lane].rank == rank]
    parts = [part for op in ops for part in op.unpacked]
    kinds = [part.kind for part in parts if part.kind in (OpKind.FORWARD, OpKind.BACKWARD, OpKind.INPUT_GRAD)]
    num_warmup = next((index for index, kind in enumerate(kinds) if kind is not OpKind.FORWARD), len(kinds)) - 1
    forwards = [part for part in parts if part.kind is OpKind.FORWARD]
    return {(op.stage, op.microbatch): index % (num_warmup + 1) >= num_partly for index, op in enumerate(forwards)}


def _check(name: str, program: Program, num_ranks: int, num_microbatches: int, num_chunks: int) -> None:
    if program.num_ranks != num_ranks:
        raise ConfigError(f"{name} is for {program.num_ranks} ranks; pipeline_model_parallel_size is {num_ranks}")
    if program.num_microbatches != num_microbatches:
        raise ConfigError(f"{name} is for {program.num_microbatches} microbatches; this step has {num_microbatches}")
    if any(len(program.holders(stage)) != 1 for stage in range(program.num_stages)):
        raise ConfigError(f"{name} holds stages on several ranks; Megatron's model chunks have no replicas")
    if program.num_stages != num_ranks * num_chunks:
        raise ConfigError(
            f"{name} has {program.num_stages // num_ranks} chunk(s) a rank, the model {num_chunks}; set "
            "virtual_pipeline_model_parallel_size accordingly"
        )
    for op in itertools.chain(*program.ranks):
        if op.kind in (OpKind.OPT, OpKind.RECOMPUTE):
            raise ConfigError(
                f"{name} has {op}: with Megatron, the script steps its optimizer and recomputes by itself"
            )
