"""What is done token by token, against plain torch in float64."""

import pytest
import torch
from score_cases import relative

from pipert.kernels.gpu.backend import GpuBackend
from pipert.kernels.loss_options import LossOptions
from pipert.kernels.reference.backend import ReferenceBackend
from pipert.kernels.statistics import RowStatistics
from pipert.kernels.vocab_shard import VocabShard

OPTIONS = [
    LossOptions(),
    LossOptions(ignore_index=3),
    LossOptions(label_smoothing=0.1, z_loss=1e-2),
    LossOptions(z_loss=1e-3, soft_cap=5.0),
]


def statistics(p, n):
    """Of p shards, of which one is all padding where there are several."""
    reference, total = 3 * torch.randn(p, n), torch.rand(p, n) + 0.5
    if p > 2:
        reference[1], total[1] = -torch.inf, 0
    return torch.stack([reference, total, torch.randn(p, n), torch.randn(p, n)], 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("p", "n"), [(1, 1), (2, 7), (5, 300), (16, 33)])
def test_combine(p, n, weighted):
    torch.manual_seed(n)
    parts = statistics(p, n)
    found = GpuBackend().combine(parts, weighted_extra=weighted)
    expected = ReferenceBackend().combine(parts.double(), weighted_extra=weighted)
    assert relative(found.packed_KN, expected.packed_KN) < 1e-6


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
@pytest.mark.parametrize("n", [1, 7, 300])
def test_locate(n, dtype):
    torch.manual_seed(n)
    targets = torch.randint(-1, 29, (n,)).to(dtype)
    for shard in (VocabShard(29, 3, 0), VocabShard(29, 3, 2), VocabShard(3, 2, 1)):
        for ignore in (-1, 4):
            found, expected = (each().locate(targets, shard, ignore) for each in (GpuBackend, ReferenceBackend))
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n", [1, 7, 300])
def test_losses(n, options):
    torch.manual_seed(n)
    stats, targets = RowStatistics(statistics(1, n)[0]), torch.randint(0, 35, (n,))  # some are out of range
    found = GpuBackend().losses(stats, targets, options, 29)
    expected = ReferenceBackend().losses(RowStatistics(stats.packed_KN.double()), targets, options, 29)
    assert torch.equal(found.isnan(), expected.isnan())
    assert relative(found.nan_to_num(0), expected.nan_to_num(0)) < 1e-6


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n", [1, 7, 300])
def test_coefficients(n, options):
    torch.manual_seed(n)
    own, everybodys = (RowStatistics(statistics(1, n)[0]) for _ in range(2))
    own.packed_KN[0, ::5] = -torch.inf
    kept = torch.rand(n) < 0.8
    grad = torch.randn(n)
    grad[~kept] = torch.nan  # it does not matter
    own.packed_KN[0, ~kept] = everybodys.packed_KN[0, ~kept] = -300  # and no target's logit is as low
    for each in (grad, torch.tensor(0.3)):
        found = GpuBackend().coefficients(own, everybodys, each, kept, options, 29)
        exact = [RowStatistics(stats.packed_KN.double()) for stats in (own, everybodys)]
        expected = ReferenceBackend().coefficients(*exact, each.double(), kept, options, 29)
        assert relative(found.a_N, expected.a_N) < 1e-6
        # Where a token is sure, b is what is left of two gradients.
        size = torch.where(kept, each, 0).double().norm()
        assert (found.b_N.double() - expected.b_N).norm() <= 1e-6 * size
        assert (found.q_N is None) == (expected.q_N is None)
        if found.q_N is not None:
            assert relative(found.q_N, expected.q_N) < 1e-6
