"""A GPT whose output layer is split over the pipeline's ranks, against Megatron's own schedule and the whole layer."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from script_runs import PIPERT, differences, needs_megatron, run

from pipert.errors import ConfigError
from pipert.kernels import VocabShard
from pipert.megatron.output_layer import OutputLayerShard

pytestmark = needs_megatron

RANKS = Path(__file__).with_name("output_layer_ranks.py")
PP4 = "--pipeline-model-parallel-size 4"
PP2 = "--pipeline-model-parallel-size 2"
V2 = "--virtual-pipeline-model-parallel-size 2"
UNTIED = "--untie-embeddings-and-output-weights"
PADDED = "--vocab-size 258"
OVERLAP = "--overlap-grad-reduce"
OTHER_BUCKETS = "--use-distributed-optimizer --overlap-param-gather"
"""With it a rank's buffer is cut otherwise, as it holds other parameters, so that there are no gradients to compare."""


def run_split(schedule, arguments, **options):
    return run(*arguments.split(), prefix=(*PIPERT, schedule, "--pipert-vocab-parallel", "2"), **options)


def figures(result, name):
    """Return what was printed of each iteration, once."""
    return [float(value) for value in dict.fromkeys(re.findall(rf"iteration \d+.*{name}: (\S+)", result.output))]


# `make megatron` runs all of them (PIPERT_MEGATRON_ALL), `make test` the first.
CASES = [
    ("1f1b", f"{PP4} {UNTIED} {PADDED} --eval-interval 2"),
    ("zb-v", f"{PP4} {V2} {PADDED}"),
    ("zb-1p", f"{PP2} {UNTIED} {OVERLAP} --calculate-per-token-loss --micro-batch-size 2"),
    ("interleaved-zb", f"{PP2} {V2} {OVERLAP} --num-experts 2"),
    ("1f1b", f"{PP2} {OVERLAP} {OTHER_BUCKETS} --eval-interval 2"),
    ("interleaved", f"{PP2} {V2} {UNTIED} {OVERLAP}"),
    ("interleaved", f"{PP2} {V2} {UNTIED} {OVERLAP} {OTHER_BUCKETS} --eval-interval 2"),
]


@pytest.mark.parametrize(("schedule", "arguments"), CASES if "PIPERT_MEGATRON_ALL" in os.environ else CASES[:1])
def test_it_trains_as_the_whole_layer_does(schedule, arguments):
    """From equal parameters gradients differ by rounding; so do losses and norms, over all steps."""
    whole, split = run(*arguments.split()), run_split(schedule, arguments)
    for name in ("lm loss", "grad norm", "validation loss at iteration 4"):
        assert figures(split, name) == pytest.approx(figures(whole, name), rel=2e-5), name
    found = differences(whole, split)
    assert found, "not a bit differs: nothing was split"
    copies = set() if UNTIED in arguments else {"output_layer.weight"}  # of the embedding, which is compared
    for difference in found:
        iteration, _, name = difference.where
        if name.startswith("loss/"):
            assert difference.norm < 1e-5, difference
        elif name not in copies and OTHER_BUCKETS not in arguments:
            assert difference.norm < (1e-5 if iteration == 1 else 1e-4), difference


def test_ranks_agree_on_initial_rows_checkpoints_and_faults():
    run(script=RANKS, num_ranks=2, timeout_s=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            f"{PP2} {UNTIED} --variable-seq-lengths",
            "variable_seq_lengths with --pipert-vocab-parallel is not supported",
        ),
        (
            f"{PP2} {UNTIED} --tensor-model-parallel-size 2",
            "tensor and context parallelism with --pipert-vocab-parallel",
        ),
    ],
)
def test_it_is_refused(arguments, message):
    refused = run_split("1f1b", arguments, check=False)
    assert all(refused.codes)
    assert message in refused.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("variable_seq_lengths", True),
        ("mtp_num_layers", 1),
        ("defer_embedding_wgrad_compute", True),
        ("enable_autocast", True),
        ("tensor_model_parallel_size", 2),
        ("use_megatron_fsdp", True),
        ("overlap_grad_reduce", True),
    ],
)
def test_it_is_refused_by_name(option, value):
    from pipert.megatron.contract import CONTRACT

    items = [item for item in CONTRACT if "--pipert-vocab-parallel" in item.name]
    assert not any(item.is_used(fake_call()) for item in items)
    assert [item.verdict for item in items if item.is_used(fake_call(**{option: value}))] == ["refused"]
    assert not any(item.is_used(fake_call(splits=False, **{option: value})) for item in items)


def fake_call(*, splits=True, **options):
    """Return a call of a chunk with a tied shard, as far as the contract looks at it."""
    off = ("variable_seq_lengths", "mtp_num_layers", "defer_embedding_wgrad_compute", "enable_autocast", "no_sync_func")
    config = dict.fromkeys(off) | {"tensor_model_parallel_size": 1} | options
    ddp_config = {"use_megatron_fsdp": False, "overlap_grad_reduce": False} | options
    shard = OutputLayerShard(VocabShard(8), torch.zeros(8, 2), ends=False, tied=True)
    return SimpleNamespace(
        splits_vocabulary=splits,
        config=SimpleNamespace(**config),
        chunks=(SimpleNamespace(ddp_config=SimpleNamespace(**ddp_config), modules=lambda: [shard]),),
        context_parallel_size=1,
    )


@pytest.mark.parametrize(
    ("choice", "message"), [("1", "Algorithm 1 every rank .* use 2"), ("3", "must be off or 2, not '3'")]
)
def test_other_algorithms_are_refused(choice, message):
    from pipert.megatron import install

    with pytest.raises(ConfigError, match=message):
        install(vocab_parallel=choice)
