"""The vocabulary-split embedding against torch's."""

import pytest
import torch
from vocab_shards import split

from pipert.errors import ConfigError
from pipert.kernels import EmbeddingShard, VocabShard


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
@pytest.mark.parametrize("vocab", [3, 37])
def test_the_shards_sum_to_the_embedding(vocab, num_shards, dtype):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(vocab, 5, generator=generator).to(dtype)
    tokens = torch.randint(0, vocab, (41,), generator=generator)
    tokens[7:19] = 2
    grad = torch.randn(41, 5, generator=generator).to(dtype)
    shards = [VocabShard(vocab, num_shards, index) for index in range(num_shards)]
    layers = [EmbeddingShard(split(w, shard), shard) for shard in shards]
    parts = [layer.embed(tokens) for layer in layers]
    assert torch.equal(sum(parts), w[tokens])
    assert parts[0].dtype == dtype
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    sums = [torch.ones(shard.size, 5, dtype=acc) for shard in shards]
    for layer, main_grad in zip(layers, sums, strict=True):
        layer.add_grad(grad, tokens.int(), main_grad)
    expected = torch.ones(vocab, 5, dtype=acc)
    for token, row in zip(tokens.tolist(), grad.to(acc), strict=True):
        expected[token] += row
    found = torch.cat(sums)
    assert torch.equal(found[:vocab], expected)
    assert (found[vocab:] == 1).all()


def test_bad_input():
    shard = VocabShard(37, 2, 1)
    layer = EmbeddingShard(torch.randn(20, 5), shard)
    with pytest.raises(ConfigError, match=r"target 1 is 37, outside of the vocabulary 0\.\.36"):
        layer.embed(torch.tensor([0, 37]))
    with pytest.raises(ConfigError, match="must be integers"):
        layer.embed(torch.tensor([0.0]))
    with pytest.raises(ConfigError, match="flatten"):
        layer.embed(torch.tensor([[0]]))
    with pytest.raises(ConfigError, match=r"gradient must be \[1, 5\]"):
        layer.add_grad(torch.zeros(2, 5), torch.tensor([1]), torch.zeros(20, 5))
    with pytest.raises(ConfigError, match=r"main_grad must be \[20, 5\] in torch.float32"):
        layer.add_grad(torch.zeros(1, 5), torch.tensor([1]), torch.zeros(20, 5, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match=r"must be \[20, hidden size\]"):
        EmbeddingShard(torch.randn(19, 5), shard)
