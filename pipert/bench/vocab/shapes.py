"""The output layers that are measured, as data."""

from __future__ import annotations

from dataclasses import dataclass

from pipert.kernels.vocab_shard import VocabShard

NUM_TOKENS = 8192
NUM_SHARDS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Layer:
    """An output layer, after its model's published configuration."""

    name: str
    hidden_size: int
    vocab_size: int
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What one shard of a layer computes at a time; the first shard, which has no padding but with p = 1."""

    layer: Layer
    num_shards: int = 1
    num_tokens: int = NUM_TOKENS
    barred: bool = False

    @property
    def name(self) -> str:
        """What figures are called after."""
        return f"{self.layer.name}, p={self.num_shards}"

    @property
    def shard(self) -> VocabShard:
        """The shard that is measured."""
        return VocabShard(self.layer.vocab_size, self.num_shards)

    @property
    def product_flops(self) -> float:
        """Of one matrix product; S and T together have three of them."""
        return 2.0 * self.num_tokens * self.layer.hidden_size * self.shard.size

    @property
    def setting(self) -> str:
        """For the figures."""
        cap = "" if self.layer.soft_cap is None else f", soft cap {self.layer.soft_cap:g}"
        return f"bf16, N={self.num_tokens} D={self.layer.hidden_size} V/p={self.shard.size}{cap}"


V_128K = Layer("V=128k", 4096, 131072)
LLAMA_2_7B = Layer("Llama-2-7B", 4096, 32000)
GEMMA_2_9B = Layer("Gemma-2-9B", 3584, 256000, soft_cap=30.0)
MODELS = {
    "llama_2_7b": LLAMA_2_7B,
    "llama_3_8b": Layer("Llama-3-8B", 4096, 128256),
    "llama_3_70b": Layer("Llama-3-70B", 8192, 128256),
    "qwen_2_5_7b": Layer("Qwen2.5-7B", 3584, 152064),
    "gemma_2_9b": GEMMA_2_9B,
    "gemma_2_27b": Layer("Gemma-2-27B", 4608, 256000, soft_cap=30.0),
}

SHAPES: dict[str, tuple[Shape, ...]] = {
    "v_128k": (Shape(V_128K, barred=True), Shape(V_128K, 8, 4096, barred=True)),
    **{part: tuple(Shape(layer, shards) for shards in NUM_SHARDS) for part, layer in MODELS.items()},
}
"""By the name of the part that measures them."""

BESIDE_PEERS = (Shape(V_128K, barred=True), Shape(LLAMA_2_7B), Shape(GEMMA_2_9B))
"""Unsplit, as no peer splits a layer over pipeline ranks."""
