"""Passes over [N, D], and the scatter, against float64."""

import pytest
import torch
from score_cases import relative

from pipert.kernels.gpu import rows
from pipert.kernels.gpu.backend import GpuBackend

TARGETS = {
    "distinct": lambda n, v: torch.randperm(v)[:n] if v >= n else torch.randint(0, v, (n,)),
    "few": lambda n, v: torch.randint(-1, min(v, 3), (n,)),
    "one": lambda n, v: torch.full((n,), v - 1),
    "most": lambda n, v: torch.where(torch.rand(n) < 0.9, v // 2, torch.randint(-1, v, (n,))),
    "none": lambda n, v: torch.full((n,), -1),
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("shape", [(1, 5, 8), (7, 123, 40), (33, 40, 96), (16, 30, 8), (48, 9, 8)])
def test_scatter(targets, shape):
    check_scatter(targets, shape)


def test_a_scatter_of_more_tokens_than_are_counted(monkeypatch):
    monkeypatch.setattr(rows, "_COUNTING", 30)
    check_scatter("most", (33, 40, 96))


def test_a_run_over_many_blocks():
    check_scatter("most", (700, 20, 8))


def check_scatter(targets, shape):
    n, v, d = shape
    torch.manual_seed(n)
    local = TARGETS[targets](n, v)
    grad, main = torch.randn(n, d).bfloat16(), torch.randn(v, d)
    # Rows that go nowhere may hold anything.
    grad[local < 0] = torch.nan
    scale = torch.randn(n)
    first = main.clone()
    for factor in (None, scale):
        found = first.clone()
        rows.scatter_add(found, grad, local, factor)
        parts = grad.double().nan_to_num(0) * (1 if factor is None else factor.double()[:, None])
        expected = first.double().index_add(0, local.clamp(min=0), parts * (local >= 0)[:, None])
        assert relative(found, expected) < 1e-6
        again = first.clone()
        rows.scatter_add(again, grad, local, factor)
        assert torch.equal(found, again)


@pytest.mark.parametrize("n", [1, 7, 33, 100])
def test_the_order_is_stable(n):
    torch.manual_seed(n)
    local = torch.randint(-1, 5, (n,))
    order, targets = rows._sorted(local)
    expected = torch.sort(local, stable=True)
    assert torch.equal(targets, expected.values)
    assert torch.equal(order, expected.indices)


@pytest.mark.parametrize("shape", [(1, 5, 8), (7, 123, 40), (5, 11, 2500)])
def test_input_grad(shape):
    n, v, d = shape
    torch.manual_seed(n)
    local = torch.randint(-1, v, (n,))
    product, w, a, b = torch.randn(n, d), torch.randn(v, d).bfloat16(), torch.randn(n), torch.randn(n)
    expected = a.double()[:, None] * product.double()
    expected += b.double()[:, None] * w.double()[local.clamp(min=0)] * (local >= 0)[:, None]
    found = GpuBackend().input_grad(product, w, local, a, b)
    assert found is product
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("shape", [(1, 5, 8), (7, 123, 40), (5, 11, 2500)])
def test_embedding(shape):
    n, v, d = shape
    torch.manual_seed(n)
    local = torch.randint(-1, v, (n,))
    w, grad, main = torch.randn(v, d).bfloat16(), torch.randn(n, d).bfloat16(), torch.randn(v, d)
    backend = GpuBackend()
    assert torch.equal(backend.embed(w, local), torch.where((local >= 0)[:, None], w[local.clamp(min=0)], 0))
    expected = main.double().index_add(0, local.clamp(min=0), grad.double() * (local >= 0)[:, None])
    backend.add_embedding_grad(main, grad, local)
    assert relative(main, expected) < 1e-6
