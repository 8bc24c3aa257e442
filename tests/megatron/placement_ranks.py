"""What the ranks of a pipeline check of a model placed in a V: run by test_megatron_placement.py under torchrun."""

import re

import cpu_shim
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core import tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec
from megatron.core.transformer.transformer_config import TransformerConfig

from pipert.errors import ConfigError
from pipert.megatron import placed, placement

P = 4


def build(provide=None, **options):
    config = TransformerConfig(
        num_layers=8,
        hidden_size=16,
        num_attention_heads=2,
        pipeline_model_parallel_size=P,
        virtual_pipeline_model_parallel_size=2,
        pipeline_dtype=torch.float32,
        gradient_accumulation_fusion=False,
        **options,
    )
    spec = get_gpt_layer_local_spec()

    def model_provider(pre_process, post_process, vp_stage):
        mtp = None
        if config.mtp_num_layers:
            mtp = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=vp_stage)
        return GPTModel(
            config,
            spec,
            vocab_size=32,
            max_sequence_length=8,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=True,
            position_embedding_type="rope",
            mtp_block_spec=mtp,
            vp_stage=vp_stage,
        )

    provide = (provide or (lambda function: function))(model_provider)
    chunks = [
        provide(
            pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            vp_stage=stage,
        )
        for stage in range(2)
    ]
    return config, [DistributedDataParallel(config, DistributedDataParallelConfig(), chunk) for chunk in chunks]


def copies(chunks):
    """Return this rank's copies of the embedding, and how many of them count in norms."""
    found = [
        chunk.module.shared_embedding_or_output_weight()
        for chunk in chunks
        if chunk.module.pre_process or chunk.module.post_process or chunk.module.mtp_process
    ]
    return found, sum(not getattr(weight, "shared", False) for weight in found)


def gathered(value):
    values = [None] * P
    dist.all_gather_object(values, value)
    return values


def check_tied():
    _, chunks = build()
    weights, num_counted = copies(chunks)
    assert len(weights) == (2 if dist.get_rank() == 0 else 0)
    assert sum(gathered(num_counted)) == 1
    if weights:
        assert torch.equal(*weights)
        assert weights[0].any()
        assert all(weight.shared_embedding for weight in weights)
    grads = [torch.full_like(weight.main_grad, 0.1 + index) for index, weight in enumerate(weights)]
    for weight, grad in zip(weights, grads, strict=True):
        weight.main_grad.copy_(grad)
    # The tokens are known where the last stage is.
    num_tokens = torch.tensor(5 if dist.get_rank() == 0 else 0, dtype=torch.int)
    finalize_model_grads(chunks, num_tokens)
    assert num_tokens == 5
    for weight in weights:
        assert torch.equal(weight.main_grad, (grads[0] + grads[1]) * (1 / num_tokens))
    return chunks


def check_layers(chunks):
    layers, keys, shards = [], set(), []
    for chunk in chunks:
        layers += [layer.layer_number - 1 for layer in chunk.module.decoder.layers]
        state = chunk.module.sharded_state_dict(metadata={"dp_cp_group": mpu.get_data_parallel_group()})
        for value in state.values():
            if not hasattr(value, "global_offset"):
                continue
            keys.add(value.key)
            if re.match(r"decoder\.layers\.self_attention\.linear_qkv\.weight", value.key):
                shards.append(value.global_offset[0])
    rank = dist.get_rank()
    assert layers == [rank, 2 * P - 1 - rank]
    assert shards == layers
    assert sorted(offset for rank_shards in gathered(shards) for offset in rank_shards) == list(range(2 * P))
    every = set.union(*gathered(keys))
    assert {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight"} <= every
    assert not any("output_layer" in key for key in every), "tied: it is the embedding"


def check_mtp_alone():
    """Layers of multi-token prediction in a stage of their own have a third copy of the embedding, on rank 1."""
    _, chunks = build(mtp_num_layers=1, pipeline_model_parallel_layout="Ett|t|t|t|t|tt|m|L")
    weights, _ = copies(chunks)
    assert gathered(len(weights)) == [2, 1, 0, 0]
    assert [chunk.module.mtp_process for chunk in chunks] == [False, dist.get_rank() == 1]
    sums = gathered([weight.sum().item() for weight in weights])
    assert sums[0][0] == sums[0][1] == sums[1][0] != 0
    for weight in weights:
        weight.main_grad.fill_(1 + dist.get_rank())
    finalize_model_grads(chunks, None)
    assert all(bool((weight.main_grad == 4).all()) for weight in weights)


def check_losses():
    group, rank = mpu.get_pipeline_model_parallel_group(), dist.get_rank()
    data = [
        {
            "lm loss": torch.tensor([1.5, 3.0]),
            "n": (torch.tensor(7, dtype=torch.int), 2, 0.1, None),
            "flags": [True, "x"],
        },
        {"lm loss": torch.tensor([2.5, 4.0]), "n": (torch.tensor(True), -1, float("inf"), None), "flags": []},
    ]
    shared = placement.share_losses(data if rank == 0 else [], group)
    assert repr(shared) == repr(data if rank in (0, P - 1) else [])
    assert placement.share_losses([], group) == []
    if rank in (0, P - 1):
        with pytest.raises(ConfigError, match="hold a object"):
            placement.share_losses([object()] if rank == 0 else [], group)


def check_placed():
    """A script that decides the ends as the loop has them is put right by one line."""

    ends = {"pre_process": dist.get_rank() == 0, "post_process": False}
    _, chunks = build(lambda model_provider: lambda vp_stage, **_: placed(model_provider)(vp_stage=vp_stage, **ends))
    assert gathered([chunk.module.post_process for chunk in chunks])[0] == [False, True]


if __name__ == "__main__":
    cpu_shim.install()
    dist.init_process_group("gloo")
    mpu.initialize_model_parallel(pipeline_model_parallel_size=P, virtual_pipeline_model_parallel_size=2)
    torch.manual_seed(dist.get_rank())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    rebinding = placement.install("vee")
    for check in (check_losses, check_placed, check_mtp_alone):
        check()
    check_layers(check_tied())
    rebinding.undo()
    assert not mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=1) or dist.get_rank() == P - 1
    dist.destroy_process_group()
