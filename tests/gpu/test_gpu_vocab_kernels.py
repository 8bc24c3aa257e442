"""The output layer's kernels one by one on a GPU, at sizes of real models, against float64.

Shapes: N tokens, D hidden, V rows of a shard.
"""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[1] / "kernels"))
from score_cases import Case, check_score, check_statistics, exact, make, relative

from pipert.kernels import LossOptions, VocabShard, output_shard
from pipert.kernels.gpu import products, rows
from pipert.kernels.gpu.backend import GpuBackend
from pipert.kernels.gpu.device_info import can_use_tma, capability_major, has_aligned_rows
from pipert.kernels.gpu.problem import ScoreProblem
from pipert.kernels.gpu.score import score_rows
from pipert.kernels.gpu.tile_configs import product_configs
from pipert.kernels.gpu.ways import ways
from pipert.kernels.output_shard import OutputShard
from pipert.kernels.statistics import RowStatistics

pytestmark = [pytest.mark.gpu, pytest.mark.kernels, pytest.mark.timeout(300)]

CASES = [
    Case(4096, 16384, 4096, scale=1 / 64),
    Case(1000, 50258, 768, num_real=50257, scale=1 / 28, targets="repeated"),
    Case(513, 8200, 1032, num_real=8001, bias=True, scale=1 / 32),
    Case(513, 8200, 1032, num_real=8001, bias=True, soft_cap=3.0, scale=1 / 32),
    Case(130, 5003, 123, scale=300.0),
    Case(33, 507, 96, num_real=0),
    Case(1, 5, 8),
]


def poison(device):
    """Leave NaN where the next tensors will be."""
    for size in (1 << 8, 1 << 16, 1 << 20, 1 << 24, 1 << 27):
        torch.full((size,), torch.nan, device=device)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_way_of_score(device, case):
    inputs = make(case, device)
    expected = exact(inputs)
    extra = int(case.bias and case.soft_cap is None)
    out = inputs.x_ND.new_empty(case.num_tokens, case.vocab)
    problem = ScoreProblem(
        inputs.x_ND, inputs.w_VD, inputs.local_N, inputs.num_real, inputs.bias_V, case.soft_cap, extra, out
    )
    for num_sms in (None, 20):
        for name, way in ways(problem, None, None, num_sms).items():
            poison(device)
            out.fill_(torch.nan)
            statistics = score_rows(problem, way, num_sms)
            check_score(inputs, expected, out, RowStatistics(statistics), extra="sum" if extra else None)
            first = out.clone()
            assert torch.equal(score_rows(problem, way, num_sms), statistics), name
            assert torch.equal(out, first), name


@pytest.mark.parametrize("route", ["fused", "library"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_entropy(device, case, route):
    inputs = make(case, device)
    found = inputs.statistics(GpuBackend(route), entropy=True)
    check_statistics(inputs, exact(inputs), found, extra="entropy")


@pytest.mark.parametrize("shape", [(4096, 16384, 4096), (1000, 50258, 768), (333, 5003, 123)])
def test_every_way_of_the_products(device, shape):
    n, v, d = shape
    generator = torch.Generator(device).manual_seed(n)

    def normal(*size):
        return torch.randn(*size, generator=generator, device=device)

    exp, w, x, main = normal(n, v).bfloat16(), normal(v, d).bfloat16(), normal(n, d).bfloat16(), normal(v, d)
    product = exp.double() @ w.double()
    added = main.double() + exp.double().T @ x.double()
    loads, tma = has_aligned_rows(exp, w, x), can_use_tma(exp, w, x)
    for config in product_configs(capability_major(device), loads=loads):
        for num_sms in (None, 20):
            found = torch.full((n, d), torch.nan, device=device)
            products.run_persistent(exp, w, found, config, num_sms, transposed=False, tma=tma)
            assert relative(found, product) < 1e-5
            found = main.clone()
            products.run_persistent(exp, x, found, config, num_sms, transposed=True, tma=tma)
            assert relative(found, added) < 1e-5
    backend = GpuBackend()
    assert relative(backend.product(exp, w, num_sms=None), product) < 1e-5
    nothing, none = torch.zeros(n, device=device), torch.full((n,), -1, device=device)
    backend.add_weight_grad(main, exp, x, none, nothing + 1, nothing, num_sms=None)
    assert relative(main, added) < 1e-5


def test_weight_grad_allocates_no_second_one(device):
    n, v, d = 512, 65536, 512
    generator = torch.Generator(device).manual_seed(0)
    exp = torch.randn(n, v, generator=generator, device=device).bfloat16()
    x = torch.randn(n, d, generator=generator, device=device).bfloat16()
    main, ones = torch.zeros(v, d, device=device), torch.ones(n, device=device)
    local = torch.randint(v, (n,), generator=generator, device=device)
    backend = GpuBackend()
    backend.add_weight_grad(main, exp, x, local, ones, ones, num_sms=None)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backend.add_weight_grad(main, exp, x, local, ones, ones, num_sms=None)
    assert torch.cuda.max_memory_allocated() - before < main.numel()


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 33, 8192, 40000])
def test_scatter(device, n, share):
    """Past 16384 tokens they are sorted by torch."""
    v, d = 5003, 520
    generator = torch.Generator(device).manual_seed(n)
    local = torch.randint(-1, v, (n,), generator=generator, device=device)
    local = torch.where(torch.rand(n, generator=generator, device=device) < share, v // 2, local)
    grad = torch.randn(n, d, generator=generator, device=device).bfloat16()
    scale = torch.randn(n, generator=generator, device=device)
    main = torch.randn(v, d, generator=generator, device=device)
    expected = main.double()
    expected.index_put_(
        (local.clamp(min=0),), grad.double() * (scale * (local >= 0)).double()[:, None], accumulate=True
    )
    found = [main.clone() for _ in range(3)]
    for sums in found:
        poison(device)
        rows.scatter_add(sums, grad, local, scale)
    assert relative(found[0], expected) < 1e-6
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("route", ["fused", "library"])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_a_captured_graph_of_s_and_t(device, monkeypatch, route, algorithm):
    """Replayed on other tokens, it gives the bits that eager calls give."""
    backend = GpuBackend(route)
    monkeypatch.setattr(output_shard, "backend_for", lambda _: backend)
    n, v, d = 700, 8192, 512
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, device=device)

    w = (normal(v, d) / 16).bfloat16()
    layer = OutputShard(w, VocabShard(v), LossOptions(z_loss=0.1))
    x, targets = normal(n, d).bfloat16(), torch.randint(v, (n,), generator=generator, device=device)
    main = torch.zeros(v, d, device=device)

    def step():
        state = layer.score(x, targets, algorithm=algorithm)
        losses = layer.losses(state.statistics, targets)
        grad = layer.input_grad(state, state.statistics, torch.full_like(losses, 1 / n))
        layer.add_weight_grad(state, state.statistics, torch.full_like(losses, 1 / n), main)
        return losses, grad

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        # Some logits are far above the others, so that rows are done again in the graph.
        x.copy_(normal(n, d) * torch.where(torch.rand(n, 1, generator=generator, device=device) < 0.1, 100.0, 1.0))
        targets.random_(v, generator=generator)
        main.zero_()
        graph.replay()
        found = [t.clone() for t in (*captured, main)]
        main.zero_()
        for a, b in zip(found, (*step(), main), strict=True):
            assert torch.equal(a, b)


def test_ways_are_measured_and_kept(device, tmp_path):
    inputs = make(Case(512, 4096, 256), device)
    path = tmp_path / "choices.json"
    torch.use_deterministic_algorithms(False)
    inputs.score(GpuBackend(tuning_file=path))
    kept = path.read_text()
    assert torch.cuda.get_device_name(device) in kept
    inputs.score(GpuBackend(tuning_file=path))
    assert path.read_text() == kept
