"""``--profile-layers``: what each layer of the model costs on this machine, for ``pipert tune``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from pipert.train.clock import ClockedStage, clock_loss
from pipert.train.config import VOCAB_SIZE, ModelConfig, TrainConfig
from pipert.train.model import DTYPES, GptStage, initialise, loss_fn, main_grad_dtype
from pipert.tune.profile import Layer

NUM_ROUNDS = 12
"""How often each layer runs; its times are medians."""


def profile_layers(config: TrainConfig, advance: Callable[[int], None] = lambda _: None) -> list[Layer]:
    """Time the embedding, each block and the head with the loss, one microbatch at a time on one thread.

    Args:
        config: its model, dtype, batch size and seed count.
        advance: called with 1 after each of ``NUM_ROUNDS`` rounds.

    Returns:
        A layer for each, its times CPU times in ms, its sizes in bytes.
    """
    torch.set_num_threads(1)
    clocked = _stages(config)
    generator = torch.Generator().manual_seed(config.seed)
    sizes: dict[str, tuple[int, int, int]] = {}
    for microbatch in range(NUM_ROUNDS):
        for name, stage in clocked.items():
            sizes[name] = _run(stage, microbatch, config, generator)
        advance(1)
    layers = []
    for name, stage in clocked.items():
        costs = stage.costs()
        layers.append(Layer(name, costs.F, costs.I, costs.W, *map(float, sizes[name])))
    return layers


def _stages(config: TrainConfig) -> dict[str, ClockedStage]:
    """Make a stage of each layer, of a model with a block more at each end, as an outermost block has more to do."""
    num_blocks = config.model.num_layers
    model = dataclasses.replace(config.model, num_layers=num_blocks + 2)
    cuts = {
        "embedding": range(0),
        **{f"block {block}": range(block + 1, block + 2) for block in range(num_blocks)},
        "head": range(model.num_layers, model.num_layers),
    }
    return {name: _stage(model, cut, config) for name, cut in cuts.items()}


def _stage(model: ModelConfig, cut: range, config: TrainConfig) -> ClockedStage:
    dtype = DTYPES[config.dtype]
    module = GptStage(model, cut)
    initialise(module, config.seed, model.num_layers)
    return ClockedStage(
        module.to(dtype), recompute=False, main_grad_dtype=main_grad_dtype(dtype), batch_weight_grads=False
    )


def _run(stage: ClockedStage, microbatch: int, config: TrainConfig, generator: torch.Generator) -> tuple[int, int, int]:
    """Run the ops of one microbatch; return the bytes held before I and before W, and those of the output.

    Where more is held before W than before I, since the output's gradient is, it counts from the F on.
    """
    tokens_BT = torch.randint(VOCAB_SIZE, (config.batch_size, config.model.seq_len), generator=generator)
    hidden_BTD = torch.randn(*tokens_BT.shape, config.model.dim, generator=generator, dtype=torch.float32)
    module = stage.module
    assert isinstance(module, GptStage)
    (output,) = stage.forward(microbatch, (tokens_BT if module.is_first else hidden_BTD.to(DTYPES[config.dtype]),))
    held = stage.activation_bytes
    stage.input_grad(microbatch, (_grad(stage, output, tokens_BT, generator),))
    held_after_input_grad = stage.activation_bytes
    stage.weight_grad(microbatch)
    return max(held, held_after_input_grad), held_after_input_grad, output.nbytes


def _grad(stage: ClockedStage, output: Tensor, targets_BT: Tensor, generator: torch.Generator) -> Tensor:
    if not stage.module.is_last:
        return torch.randn(output.shape, generator=generator, dtype=torch.float32).to(output.dtype)
    logits_BTV = output.detach().requires_grad_()
    loss = clock_loss(loss_fn, [stage])(logits_BTV, targets_BT)
    (grad,) = torch.autograd.grad(loss, logits_BTV)
    return grad
