"""Megatron's model chunks placed in a V: which layers and ends they have, and that training has the same bits."""

from pathlib import Path

import pytest
from script_runs import PIPERT, differences, needs_megatron, run

import pipert
from pipert.errors import ConfigError
from pipert.megatron import placed, placement
from pipert.schedules import SCHEDULES
from pipert.schedules import placement as places

pytestmark = needs_megatron

RANKS = Path(__file__).with_name("placement_ranks.py")
UNCLIPPED = "--clip-grad 0"  # the norm is summed over ranks, so its last bits depend on what they hold
PP4V2 = f"--pipeline-model-parallel-size 4 --virtual-pipeline-model-parallel-size 2 {UNCLIPPED}"
PP2V2 = f"--pipeline-model-parallel-size 2 --virtual-pipeline-model-parallel-size 2 {UNCLIPPED}"


class Group:
    """A pipeline group of which this process plays a rank."""

    def __init__(self, rank, size):
        self._rank, self._size = rank, size

    def rank(self):
        return self._rank

    def size(self):
        return self._size


@pytest.fixture
def ranks(monkeypatch):
    """Let this process be any rank of a pipeline."""
    import torch
    from megatron.core import parallel_state

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 0)

    def become(rank, num_ranks, num_chunks):
        parallel_state.set_pipeline_model_parallel_rank(rank)
        parallel_state.set_pipeline_model_parallel_world_size(num_ranks)
        parallel_state._VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE = num_chunks
        return Group(rank, num_ranks)

    yield become
    become(None, None, None)


@pytest.fixture
def installed():
    rebindings = []

    def install():
        rebindings.append(placement.install("vee"))
        return rebindings[-1]

    yield install
    for rebinding in rebindings:
        rebinding.undo()


def configuration(num_ranks, num_chunks, **options):
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(
        hidden_size=8,
        num_attention_heads=2,
        pipeline_model_parallel_size=num_ranks,
        virtual_pipeline_model_parallel_size=num_chunks,
        pipeline_dtype=torch.float32,
        **options,
    )


def layers(config, chunk):
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    start = get_transformer_layer_offset(config, chunk)
    return list(range(start, start + get_num_layers_to_build(config, chunk)))


def mtp_layers(config, chunk):
    from megatron.core.transformer.multi_token_prediction import get_mtp_num_layers_to_build, mtp_on_this_rank

    number = get_mtp_num_layers_to_build(config, chunk)
    assert mtp_on_this_rank(config, ignore_virtual=False, vp_stage=chunk) == (number > 0)
    return number


LAYOUTS = {
    "even": (4, 2, {"num_layers": 16}),
    "two ranks": (2, 2, {"num_layers": 8}),
    "four chunks": (3, 4, {"num_layers": 24}),
    "three chunks": (4, 3, {"num_layers": 12}),
    "first and last": (
        4,
        2,
        {"num_layers": 14, "num_layers_in_first_pipeline_stage": 2, "num_layers_in_last_pipeline_stage": 4},
    ),
    "embedding and loss": (
        4,
        2,
        {"num_layers": 14, "account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
    ),
    "layout": (4, 2, {"num_layers": 9, "pipeline_model_parallel_layout": "Et|tt|t|t||tt|t|tL"}),
    "layout with mtp": (
        16,
        2,
        {"num_layers": 61, "pipeline_model_parallel_layout": "Et*3|(tt|)*29,m|L", "mtp_num_layers": 1},
    ),
    "mtp at the end": (4, 2, {"num_layers": 8, "mtp_num_layers": 1}),
}


@pytest.mark.parametrize(("num_ranks", "num_chunks", "options"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_each_chunk_has_the_layers_and_the_ends_of_its_stage(ranks, installed, num_ranks, num_chunks, options):
    from megatron.core import parallel_state as mpu
    from megatron.core.pipeline_parallel import utils
    from megatron.core.transformer import multi_token_prediction

    config = configuration(num_ranks, num_chunks, **options)
    num_stages = num_ranks * num_chunks
    expected = []
    for stage in range(num_stages):
        ranks(stage % num_ranks, num_ranks, num_chunks)
        expected.append((layers(config, stage // num_ranks), mtp_layers(config, stage // num_ranks)))
    installed()
    path = places.vee(num_ranks, num_chunks)
    for rank in range(num_ranks):
        group = ranks(rank, num_ranks, num_chunks)
        for chunk, stage in enumerate(stage for stage in range(num_stages) if path[stage] == rank):
            assert (layers(config, chunk), mtp_layers(config, chunk)) == expected[stage]
            first, last = stage == 0, stage == num_stages - 1
            assert mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk) == first
            assert mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk) == last
            assert (utils.is_pp_first_stage(group) and utils.is_vp_first_stage(chunk, num_chunks)) == first
            assert (utils.is_pp_last_stage(group) and utils.is_vp_last_stage(chunk, num_chunks)) == last
        assert mpu.is_pipeline_last_stage() == (rank == num_ranks - 1), "where scripts read losses"
    assert sorted(layer for numbers, _ in expected for layer in numbers) == list(range(config.num_layers))
    with_mtp = [path[stage] for stage, (_, number) in enumerate(expected) if number]
    assert multi_token_prediction.get_mtp_ranks(list(range(num_ranks)), config) == with_mtp


def test_a_batch_is_asked_for_by_the_chunk_that_runs(ranks, installed):
    from megatron.core import parallel_state as mpu

    installed()
    ranks(0, 4, 2)
    ends = []
    for chunk in range(2):
        with placement.running(chunk):
            ends.append((mpu.is_pipeline_first_stage(), mpu.is_pipeline_last_stage()))
    assert ends == [(True, False), (False, True)]
    assert (mpu.is_pipeline_first_stage(), mpu.is_pipeline_last_stage()) == (True, False)


def test_everything_is_put_back(installed):
    import sys

    from megatron.core.models.common.language_module.language_module import LanguageModule
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    def bound():
        names = [name for name in sys.modules if name.startswith("megatron.core")]
        owners = [*(sys.modules[name] for name in names), LanguageModule, PipelineParallelLayerLayout]
        return [dict(vars(owner)) for owner in owners]

    installed().undo()  # imports what it patches
    before = bound()
    rebinding = installed()
    assert bound() != before
    rebinding.undo()
    assert bound() == before


def test_chunks_are_needed(ranks, installed):
    from megatron.core import parallel_state as mpu

    installed()
    ranks(0, 4, None)
    with pytest.raises(ConfigError, match="virtual_pipeline_model_parallel_size"):
        mpu.is_pipeline_last_stage(ignore_virtual=False)
    with pytest.raises(ConfigError, match="virtual_pipeline_model_parallel_size"):
        layers(configuration(4, None, num_layers=8), None)


def test_without_a_pipeline_nothing_changes(ranks, installed):
    from megatron.core import parallel_state as mpu

    installed()
    ranks(0, 1, None)
    assert mpu.is_pipeline_first_stage(ignore_virtual=False)
    assert mpu.is_pipeline_last_stage(ignore_virtual=False)
    assert layers(configuration(1, None, num_layers=3), None) == [0, 1, 2]


def test_a_schedule_has_its_placement(tmp_path):
    for name, schedule in SCHEDULES.items():
        if name == "auto":
            continue
        program = pipert.schedules.build(name, num_ranks=2, num_microbatches=8)
        path, num_chunks = tuple(program.paths[0]), schedule.num_chunks or 1
        if len(program.paths) == 1 and num_chunks > 1:
            assert placement.shape_of(name) == ("vee" if path == places.vee(2, num_chunks) else None), name
    for name in ("zb-v", "interleaved"):
        plan = pipert.compile(pipert.schedules.build(name, num_ranks=2, num_microbatches=4, num_chunks=2))
        plan.save(tmp_path / "plan.json")
        assert placement.shape_of(str(tmp_path / "plan.json")) == placement.shape_of(name)
    assert placement.shape_of(None) is None
    with pytest.raises(ConfigError, match="no placement"):
        placement.install("spiral")


def test_a_plan_of_another_placement_is_refused(installed):
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=2, num_microbatches=4))
    with pytest.raises(ConfigError, match="before the model is built"):
        placement.check(plan, 0, [])
    installed()
    plan = pipert.compile(pipert.schedules.build("interleaved", num_ranks=2, num_microbatches=4, num_chunks=2))
    with pytest.raises(ConfigError, match="before the model is built"):
        placement.check(plan, 0, [])


def test_a_provider_is_placed_by_its_arguments(ranks, installed):
    installed()
    ranks(0, 4, 2)

    def plain(args, pre_process=True, post_process=True, vp_stage=None):
        return args, pre_process, post_process, vp_stage

    def collected(args, **kwargs):
        return args, kwargs["pre_process"], kwargs["post_process"], kwargs["vp_stage"]

    for provider in (plain, collected):
        wrapped = placed(provider)
        assert wrapped("args", pre_process=False, post_process=True, vp_stage=0) == ("args", True, False, 0)
        assert wrapped("args", vp_stage=1) == ("args", False, True, 1)
    with pytest.raises(ConfigError, match="vp_stage"):
        placed(lambda pre_process, post_process: None)


def test_ranks_agree_on_embeddings_checkpoints_tokens_and_losses():
    run(script=RANKS)


@pytest.mark.parametrize(
    ("schedule", "arguments"),
    [
        ("zb-v", PP4V2),
        ("zb-v", f"{PP4V2} --num-experts 2 --untie-embeddings-and-output-weights"),
        ("zb-v", f"{PP4V2} --calculate-per-token-loss --variable-seq-lengths --eval-interval 2 --eval-iters 2"),
        ("zb-v", f"{PP2V2} --use-distributed-optimizer --overlap-grad-reduce"),
        ("zb-v", f"{PP2V2} --tensor-model-parallel-size 2 --sequence-parallel"),
        ("v-half", f"{PP4V2} --pipeline-model-parallel-layout Et|t|tt|t|t|t||tL"),
        ("v-min", PP4V2),
        ("dualpipe-v", PP4V2),
        ("hanayo", f"{PP2V2.replace('size 2 --clip', 'size 4 --clip')}"),
    ],
)
def test_bits(schedule, arguments):
    reference = run(*arguments.split())
    assert not differences(reference, run(*arguments.split(), prefix=(*PIPERT, schedule)))
