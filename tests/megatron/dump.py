"""The state of a run by names that do not depend on which rank holds what."""

import hashlib
import re

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def initialise(model, seed, vocab_size):
    """Fill every parameter from (seed, its name) alone, so that any cut of the model is the same model."""
    for name, parameter in named_parameters(model):
        if parameter.dim() > 1:
            name = "output_layer.weight" if name == "embedding.word_embeddings.weight" else name  # tied ones are equal
            number = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest(), "big")
            number += mpu.get_tensor_model_parallel_rank() + 100 * mpu.get_expert_model_parallel_rank()
            generator = torch.Generator().manual_seed(number)
            rows = _rows(name, parameter, vocab_size)
            if rows is None:
                parameter.data.normal_(0, 0.02, generator=generator)
            else:
                whole = torch.empty(vocab_size, parameter.shape[1]).normal_(0, 0.02, generator=generator)
                parameter.data[: len(rows)] = whole[rows.start : rows.stop]


def _rows(name, parameter, vocab_size):
    """Return which rows of the output layer a rank of the pipeline has, where it has a part of them; else None."""
    size = parameter.shape[0]
    if name != "output_layer.weight" or size * mpu.get_tensor_model_parallel_world_size() == vocab_size:
        return None
    start = mpu.get_pipeline_model_parallel_rank() * size
    return range(min(start, vocab_size), min(start + size, vocab_size))


def named_parameters(model):
    """Give each parameter of this rank under its name in the whole model."""
    for chunk in model:
        module = chunk.module
        for name, parameter in module.named_parameters():
            found = _LAYER.match(name)
            if found:
                layer = module.decoder.layers[int(found[1])].layer_number - 1
                name = f"decoder.layers.{layer}.{name[found.end() :]}"
            yield name, parameter


def write(folder, iteration, model, losses, vocab_size):
    """Write this rank's losses, and its gradients after they were reduced."""
    folder.mkdir(parents=True, exist_ok=True)
    gradients = {}
    for name, parameter in named_parameters(model):
        rows = _rows(name, parameter, vocab_size)
        if rows is None:
            gradients[name] = parameter.main_grad.clone()
        else:
            assert not parameter.main_grad[len(rows) :].any(), "padding has a gradient"
            gradients[f"{name}/{mpu.get_pipeline_model_parallel_rank()}"] = parameter.main_grad[: len(rows)].clone()
    place = f"tp{mpu.get_tensor_model_parallel_rank()}-dp{mpu.get_data_parallel_rank()}"
    rank = mpu.get_pipeline_model_parallel_rank()
    torch.save(
        {"losses": losses, "gradients": gradients},
        folder / f"iteration{iteration}-{place}-pp{rank}-of{dist.get_rank()}.pt",
    )
