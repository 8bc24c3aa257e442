"""The torch operators: their schemas, fake results and autograd, and that torch.compile keeps them whole."""

import pytest
import torch
from vocab_problems import problem
from vocab_shards import split

from pipert.kernels import LossOptions, VocabParallelLinearCrossEntropy, VocabShard
from pipert.kernels.chunked_ops import vocab_scaled_grads, vocab_sum_and_grads
from pipert.kernels.layer_settings import LayerSettings
from pipert.kernels.output_ops import vocab_grads, vocab_losses, vocab_statistics

SHARD = VocabShard(37)


def arguments(dtype=torch.float32, bound=None, main_grads=False):
    x, w, bias, targets, loss_grad = problem(dtype=dtype)
    tensors = [t.requires_grad_() for t in (x, split(w, SHARD), split(bias, SHARD))]
    settings = LayerSettings(SHARD, LossOptions(z_loss=0.1), None, bound).arguments()
    sums = [torch.zeros_like(t, dtype=torch.float32).detach() if main_grads else None for t in tensors[1:]]
    return tensors, targets, loss_grad.to(torch.float32), sums, settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("main_grads", [False, True])
@pytest.mark.parametrize("bound", [None, 2500])
def test_opcheck(bound, main_grads, dtype):
    tensors, targets, loss_grad, sums, settings = arguments(dtype, bound, main_grads)
    keep = bound is None
    calls = [(vocab_losses, (*tensors, targets, *sums, keep, *settings))]
    plain = [t.detach() for t in tensors]
    calls += [(vocab_statistics, (*plain, targets, True, *settings))]
    _, *kept = vocab_losses(*plain, targets, None, None, keep, *settings)
    for wanted in ([True, True, True], [False, True, False], [True, False, True]):
        calls += [(vocab_grads, (loss_grad, *plain, targets, *kept, *sums, keep, wanted, *settings))]
    if bound is not None:
        factors = loss_grad.clone().requires_grad_()
        wanted = [True, True, True]
        calls += [(vocab_sum_and_grads, (*tensors, targets, factors, *sums, wanted, *settings))]
        _, _, *grads = vocab_sum_and_grads(*plain, targets, loss_grad, None, None, wanted, *settings)
        calls += [(vocab_scaled_grads, (torch.tensor(0.5), *grads, *sums, wanted, dtype))]
    for op, args in calls:
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("main_grads", [False, True])
@pytest.mark.parametrize("bound", [None, 2500])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiled_whole_and_to_the_same_bits(reduction, bound, main_grads):
    torch._dynamo.reset()
    options = LossOptions(label_smoothing=0.1)
    layer = VocabParallelLinearCrossEntropy(
        7, 37, bias=True, options=options, reduction=reduction, max_workspace_bytes=bound
    )
    x, _, _, targets, _ = problem(dtype=torch.float32)
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        for parameter in layer.parameters():
            parameter.grad = None
            if main_grads:
                parameter.main_grad = torch.ones_like(parameter)
        leaf = x.clone().requires_grad_()
        loss = function(leaf * 2, targets, torch.linspace(0, 1, 13))
        (loss * 3).sum().backward()
        grads = [p.main_grad if main_grads else p.grad for p in layer.parameters()]
        results.append([loss.detach(), leaf.grad, *grads])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_the_graph_holds_the_operator_and_no_product():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    layer = VocabParallelLinearCrossEntropy(7, 37)
    x, _, _, targets, _ = problem(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    compiled(x, targets)
    assert len(graphs) == 1
    assert sum("vocab_losses" in target for target in graphs[0]) == 1
    assert not [target for target in graphs[0] if "mm" in target or "linear" in target or "einsum" in target]
