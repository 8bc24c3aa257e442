"""The persistent products, and T, against float64."""

import pytest
import torch
from score_cases import relative

from pipert.kernels.gpu import products
from pipert.kernels.gpu.backend import GpuBackend
from pipert.kernels.gpu.tile_configs import INTERPRETED

SHAPES = [(1, 6, 8), (7, 123, 40), (33, 136, 96), (50, 64, 33)]


def inputs(n, v, d):
    torch.manual_seed(n)
    return [torch.randn(shape).bfloat16() for shape in ((n, v), (v, d), (n, d))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_sms", [None, 2])
def test_product(shape, num_sms):
    exp, w, _ = inputs(*shape)
    found = GpuBackend().product(exp, w, num_sms=num_sms)
    assert found.dtype == torch.float32
    assert relative(found, exp.double() @ w.double()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tma", [False, True])
def test_adding_a_product(shape, tma):
    exp, _, x = inputs(*shape)
    if tma and (shape[1] % 8 or shape[2] % 8):
        pytest.skip("TMA needs rows of a multiple of 16 bytes")
    sum_VD = torch.randn(shape[1], shape[2])
    expected = sum_VD.double() + exp.double().T @ x.double()
    products.run_persistent(exp, x, sum_VD, INTERPRETED, 3, transposed=True, tma=tma)
    assert relative(sum_VD, expected) < 1e-6


@pytest.mark.parametrize("num_sms", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_grad(shape, num_sms):
    n, v, d = shape
    exp, _, x = inputs(*shape)
    local = torch.randint(-1, v, (n,))
    a, b, main = torch.randn(n), torch.randn(n), torch.randn(v, d)
    # What is cut off where the interpreter makes bf16 of a ⊙ x is the same here.
    scaled = (a[:, None] * x).view(torch.int32).bitwise_and(-65536).view(torch.float32)
    expected = main.double() + exp.double().T @ scaled.double()
    expected.index_add_(0, local.clamp(min=0), (b[:, None] * x).double() * (local >= 0)[:, None])
    GpuBackend().add_weight_grad(main, exp, x, local, a, b, num_sms=num_sms)
    assert relative(main, expected) < 1e-6
