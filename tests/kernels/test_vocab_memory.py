"""What is allocated under a bound, tensor by tensor, and that E' is all that S keeps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vocab_shards import split

from pipert.kernels import LossOptions, OutputShard, VocabShard, vocab_parallel_linear_cross_entropy
from pipert.kernels.chunked_ops import vocab_sum_and_grads
from pipert.kernels.layer_settings import LayerSettings
from pipert.kernels.output_ops import vocab_grads, vocab_losses

NUM_TOKENS, HIDDEN, VOCAB = 300, 2, 1000
SHARD = VocabShard(VOCAB)
BOUND = 40 * VOCAB * 4
LOGITS_BYTES = NUM_TOKENS * VOCAB * 4


class Largest(TorchDispatchMode):
    """Notes the sizes of all that operators return."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.sizes += [t.untyped_storage().nbytes() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        return result


def tensors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_TOKENS, HIDDEN, generator=generator)
    w = split(torch.randn(VOCAB, HIDDEN, generator=generator), SHARD)
    return x, w, torch.randint(0, VOCAB, (NUM_TOKENS,), generator=generator)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_s_allocates_its_result_and_chunks_within_the_bound(soft_cap):
    x, w, targets = tensors()
    layer = OutputShard(w, SHARD, LossOptions(soft_cap=soft_cap), max_workspace_bytes=BOUND)
    with Largest() as seen:
        layer.score(x, targets)
    assert max(seen.sizes) == LOGITS_BYTES
    assert max(size for size in seen.sizes if size != LOGITS_BYTES) <= BOUND / 4
    with Largest() as seen:
        layer.statistics(x, targets, entropy=True)
    assert max(seen.sizes) <= BOUND / 4


def test_losses_with_gradients_never_hold_all_logits():
    x, w, targets = tensors()
    settings = LayerSettings(SHARD, LossOptions(), None, BOUND).arguments()
    wanted = [True, True, False]
    with Largest() as seen:
        vocab_sum_and_grads._init_fn(x, w, None, targets, torch.ones(NUM_TOKENS), None, None, wanted, *settings)
    assert max(seen.sizes) <= BOUND / 2
    with Largest() as seen:
        _, *kept = vocab_losses._init_fn(x, w, None, targets, None, None, False, *settings)
        vocab_grads._init_fn(torch.ones(NUM_TOKENS), x, w, None, targets, *kept, None, None, False, wanted, *settings)
    assert max(seen.sizes) <= BOUND / 2


def test_the_backward_makes_no_gradient_of_what_was_kept():
    x, w, targets = tensors()
    x.requires_grad_()
    loss = vocab_parallel_linear_cross_entropy(x, w.requires_grad_(), targets, shard=SHARD)
    with Largest() as seen:
        loss.backward()
    assert seen.sizes
    assert max(seen.sizes) <= w.nbytes
