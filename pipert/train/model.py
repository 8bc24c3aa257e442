"""A byte-level GPT, cut into stages by layers.

A stage's parameters carry their names in the whole model (``layers.3.attention.qkv.weight``), and each is initialised
from (seed, name) alone, so that any cut of the layers is the same model, bit for bit.

Shapes: B sequences, T positions, D model width, H heads, K head width (D / H), V bytes (256).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipert.train.config import VOCAB_SIZE, ModelConfig
from pipert.train.plans import cut

Rotary = tuple[Tensor, Tensor] | None

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        """Mix each position with those before it."""
        batch, length, dim = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            q_BHTK, k_BHTK = _rotate(q_BHTK, *rotary), _rotate(k_BHTK, *rotary)
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.out(mixed_BHTK.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers and a GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.down = nn.Linear(4 * config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Work on each position alone."""
        return self.down(functional.gelu(self.up(x_BTD), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = Mlp(config)

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        """Add attention, then the MLP, to the residual stream."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))  # type: ignore[no-any-return]


class GptStage(nn.Module):
    """The layers ``layers`` of the model; the first stage also embeds, the last also makes the logits.

    With tied embeddings the last stage holds its own copy of ``embed.weight`` (unless it is also the first). Where the
    vocabulary is ``split`` over the ranks, the first stage starts at embedded bytes and the last ends at its norm.
    """

    cos_TK: Tensor | None
    sin_TK: Tensor | None

    def __init__(self, config: ModelConfig, layers: range, *, split: bool = False) -> None:
        super().__init__()
        self.is_first, self.is_last = layers.start == 0, layers.stop == config.num_layers
        learned, tied_end = config.positions == "learned", config.tied and self.is_last
        self.embed = nn.Embedding(VOCAB_SIZE, config.dim) if (self.is_first or tied_end) and not split else None
        self.positions = nn.Embedding(config.seq_len, config.dim) if self.is_first and learned else None
        self.layers = nn.ModuleDict({str(layer): Block(config) for layer in layers})
        self.norm = nn.LayerNorm(config.dim) if self.is_last else None
        untied_end = self.is_last and not config.tied and not split
        self.head = nn.Linear(config.dim, VOCAB_SIZE, bias=False) if untied_end else None
        cos_TK, sin_TK = (None, None) if learned else _rotary_table(config.seq_len, config.dim // config.num_heads)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take bytes [B, T] (first stage) or hidden states [B, T, D]; return these or, last, logits [B, T, V]."""
        length = x.shape[1]
        if self.is_first and self.embed is not None:
            x = self.embed(x)
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        rotary = None
        if self.cos_TK is not None and self.sin_TK is not None:
            rotary = self.cos_TK[:length], self.sin_TK[:length]
        for block in self.layers.values():
            x = block(x, rotary)
        if self.norm is not None:
            x = self.norm(x)
            unembed = self.head or self.embed
            if unembed is not None:
                x = functional.linear(x, unembed.weight)
        return x


def build_stage(
    config: ModelConfig,
    num_stages: int,
    stage: int,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    split: bool = False,
) -> GptStage:
    """Return stage ``stage`` of the model, initialised from the seed (on the CPU), on ``device``."""
    module = GptStage(config, cut(config.num_layers, num_stages)[stage], split=split)
    initialise(module, seed, config.num_layers)
    return module.to(device, dtype)


def main_grad_dtype(dtype: torch.dtype) -> torch.dtype | None:
    """Return the type that gradients are summed in, for parameters of ``dtype``; None for their own."""
    return None if dtype == torch.float32 else torch.float32


@torch.no_grad()
def initialise(module: nn.Module, seed: int, num_layers: int) -> None:
    """Fill the parameters, each from (seed, its name) alone.

    Weights are normal with deviation 1/√width; the two that end a layer's residual branches are smaller by
    √(2 × layers), as in GPT-2. Norms start as the identity.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        std = parameter.shape[1] ** -0.5
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * num_layers)
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        parameter.normal_(0.0, std, generator=generator)


def loss_fn(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross entropy, in nats a byte, computed in fp32."""
    return functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def _rotary_table(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, K] of rotary positions (arXiv 2104.09864); both halves of K turn by the same angles."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def _rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    left, right = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-right, left), dim=-1) * sin_TK
