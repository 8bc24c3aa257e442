"""Which rank holds which stage of a Megatron model.

Megatron knows the loop: stage s of p · v is on rank s mod p, as its chunk s // p. Under the placement ``vee`` each
second chunk runs back up the ranks (:func:`pipert.schedules.placement.vee`), so with two chunks the first and the last
stage are both on rank 0.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from pipert import sources
from pipert.errors import ConfigError
from pipert.megatron import losses
from pipert.megatron.rebind import Rebinding
from pipert.plan import Plan
from pipert.schedules import placement

VEE_SCHEDULES = frozenset({"zb-v", "v-half", "v-min", "hanayo", "dualpipe-v"})
"""The schedules of the table whose placement is ``vee``."""

_OPTION = "virtual_pipeline_model_parallel_size"


@dataclass(slots=True)
class _State:
    """What is in force in this process: the shape that model chunks are built for, and the chunk that runs forward."""

    shape: str | None = None
    running: int | None = None


_state = _State()


def shape_of(schedule: str | None) -> str | None:
    """Return the placement of a schedule: None for Megatron's own, the loop, and ``"vee"``.

    A Python file's schedule is made when sizes are known, after the model is built; it is taken to be a loop.

    Raises:
        ConfigError, PlanError: a bad file, or one whose placement is neither.
    """
    if schedule is None or sources.takes_sizes(schedule):
        return "vee" if schedule in VEE_SCHEDULES else None
    program = sources.load(schedule).program()
    path, num_ranks = tuple(program.paths[0]), program.num_ranks
    for shape, make in ((None, placement.loop), ("vee", placement.vee)):
        if path == make(num_ranks, len(path) // num_ranks):
            return shape
    raise ConfigError(f"{schedule} places stages on ranks {list(path)}; Megatron's chunks go in a loop or a V")


def install(shape: str) -> Rebinding:
    """Build model chunks for the placement ``shape``. To be called before the model is built.

    Chunk c of a rank then gets the layers, and the ends, of its c-th stage in the placement, ascending.

    Raises:
        ConfigError: a shape other than ``"vee"``.
    """
    if shape != "vee":
        raise ConfigError(f"there is no placement {shape!r}, only 'vee'")
    from pipert.megatron.placement_patches import patch

    patched = patch()
    _state.shape = shape

    def undo() -> None:
        _state.shape = None
        patched.undo()

    return Rebinding(undo)


def placed(model_provider: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a model provider whose script decides by itself which chunks have the ends.

    >>> model_provider = pipert.megatron.placed(model_provider)

    The wrapper takes ``vp_stage`` from the arguments, and ``pre_process`` and ``post_process`` from the placement.

    Args:
        model_provider: takes ``pre_process``, ``post_process`` and ``vp_stage``, by these names.
    """
    signature = inspect.signature(model_provider)
    named = {"pre_process", "post_process", "vp_stage"} & set(signature.parameters)
    rest = next((name for name, each in signature.parameters.items() if each.kind is each.VAR_KEYWORD), None)
    if rest is None and len(named) < 3:
        raise ConfigError("placed: the model provider must take pre_process, post_process and vp_stage")

    @functools.wraps(model_provider)
    def provide(*args: Any, **kwargs: Any) -> Any:
        from megatron.core import parallel_state

        bound = signature.bind(*args, **kwargs)
        vp_stage = {**bound.arguments.get(rest or "", {}), **bound.arguments}.get("vp_stage")
        ends = {
            "pre_process": parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            "post_process": parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        }
        for name, value in ends.items():
            (bound.arguments if name in named else bound.arguments.setdefault(rest or "", {}))[name] = value
        return model_provider(*bound.args, **bound.kwargs)

    return provide


@contextlib.contextmanager
def running(chunk: int) -> Iterator[None]:
    """Surround the forward of a chunk.

    Scripts ask ``is_pipeline_first_stage()`` there, without saying of which chunk, to know which part of a batch they
    need; of a rank that holds both ends the answer is then that of the chunk.
    """
    before, _state.running = _state.running, chunk
    try:
        yield
    finally:
        _state.running = before


def running_chunk() -> int | None:
    """Return the chunk whose forward runs now."""
    return _state.running


def share_losses(data: list[Any], group: dist.ProcessGroup) -> list[Any]:
    """Bring the loss data to the rank where scripts look for it, the last one.

    Where the last stage is on the first rank, both have them then: its ``is_pp_last_stage`` is true as well.

    Raises:
        ConfigError: see :func:`pipert.megatron.losses.share`.
    """
    from megatron.core import parallel_state

    if folds(group.size(), parallel_state.get_virtual_pipeline_model_parallel_world_size()):
        return losses.share(data, group)
    return data


def loop_rank(rank: int, chunk: int, num_ranks: int) -> int:
    """Return the rank on which Megatron's loop has the stage that ``rank`` holds as ``chunk``."""
    return rank if chunk % 2 == 0 else num_ranks - 1 - rank


def folds(num_ranks: int, num_chunks: int | None) -> bool:
    """Whether the first and the last stage are both on rank 0, under the placement in force.

    Raises:
        ConfigError: there are no chunks to place.
    """
    if _state.shape is None or num_ranks == 1:
        return False
    return need_chunks(num_chunks) % 2 == 0


def need_chunks(num_chunks: int | None) -> int:
    """Return ``num_chunks``, with ranks that hold several.

    Raises:
        ConfigError: they do not.
    """
    if num_chunks is None:
        raise ConfigError(f"a V-shaped schedule needs several model chunks a rank: set {_OPTION} (to 2 for a V)")
    return num_chunks


def mtp_places(config: Any) -> list[tuple[int, int]]:
    """Return each (rank, chunk) that has layers of multi-token prediction."""
    from megatron.core.transformer.enums import LayerType

    num_ranks = config.pipeline_model_parallel_size
    num_chunks = need_chunks(config.virtual_pipeline_model_parallel_size)
    layout = config.pipeline_model_parallel_layout
    if layout is None:
        return [(loop_rank(num_ranks - 1, num_chunks - 1, num_ranks), num_chunks - 1)]
    return [
        (loop_rank(rank, chunk, num_ranks), chunk)
        for rank, chunks in enumerate(layout.layout)
        for chunk, layers in enumerate(chunks)
        if LayerType.mtp in layers
    ]


def check(plan: Plan, rank: int, chunks: Sequence[nn.Module]) -> None:
    """See that the model was built for the placement of ``plan``.

    Args:
        plan: the order of a step.
        rank: of this process, in the pipeline.
        chunks: its model chunks.

    Raises:
        ConfigError: it was not; the message says what to do.
    """
    num_ranks = plan.num_ranks
    make = placement.loop if _state.shape is None else placement.vee
    expected = make(num_ranks, plan.num_stages // num_ranks)
    path = tuple(plan.holders(stage)[0] for stage in range(plan.num_stages))
    if path != expected:
        raise ConfigError(
            f"{plan.name} places stages on ranks {list(path)}, and the model's chunks are placed on {list(expected)}: "
            "name the schedule, or a plan file of it, when pipert is installed, before the model is built"
        )
    if _state.shape is None:
        return
    held = [stage for stage, holder in enumerate(path) if holder == rank]
    for index, (stage, chunk) in enumerate(zip(held, chunks, strict=True)):
        _check_chunk(chunk, index, stage, plan.num_stages)


def _check_chunk(chunk: nn.Module, index: int, stage: int, num_stages: int) -> None:
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
    from megatron.core.utils import get_attr_wrapped_model

    for name, expected in (("pre_process", stage == 0), ("post_process", stage == num_stages - 1)):
        try:
            found = get_attr_wrapped_model(chunk, name)
        except RuntimeError:
            return  # another kind of model, whose provider knows what it does
        if bool(found) != expected:
            raise ConfigError(
                f"model: chunk {index} has {name}={found}, and its stage is {stage} of {num_stages}: build the model "
                "after pipert is installed; if the script decides it by itself, wrap its model provider: "
                "model_provider = pipert.megatron.placed(model_provider)"
            )
    decoder: Any = getattr(get_attr_wrapped_model(chunk, "pre_process", return_model_obj=True), "decoder", None)
    numbers = [layer.layer_number for layer in getattr(decoder, "layers", ()) if hasattr(layer, "layer_number")]
    if not numbers:
        return
    first = get_transformer_layer_offset(decoder.config, index) + 1
    if numbers[0] != first:
        raise ConfigError(
            f"model: chunk {index} begins with layer {numbers[0]}, and its stage, {stage} of {num_stages}, with layer "
            f"{first}: build the model after pipert is installed"
        )
