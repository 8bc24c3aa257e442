"""S, in both of its ways, against float64."""

import pytest
import torch
from score_cases import Case, check_score, check_statistics, exact, make

from pipert.errors import ConfigError
from pipert.kernels.gpu import ways, workspace
from pipert.kernels.gpu.backend import GpuBackend

#: The interpreter cuts bf16 off instead of rounding it.
ROUNDING = 2**-7
ROUTES = ["fused", "library"]
CASES = [
    Case(7, 123, 40),
    Case(33, 136, 40, num_real=130, bias=True),
    Case(33, 507, 96, num_real=300, soft_cap=2.0, targets="repeated"),
    Case(1, 5, 8),
    Case(17, 5, 8, num_real=3, bias=True, soft_cap=1.5),
    Case(9, 66, 41, num_real=0),
    Case(18, 72, 24, targets="ignored"),
    Case(19, 200, 48, scale=300.0),
    Case(5, 131, 33, scale=400.0, bias=True),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exp_and_statistics(case, route):
    inputs = make(case)
    backend = GpuBackend(route)
    found = inputs.score(backend, sum_logits=case.bias)
    check_score(inputs, exact(inputs), *found, extra="sum" if case.bias else None, rounding=ROUNDING)
    again = inputs.score(backend, sum_logits=case.bias)
    assert torch.equal(found[0], again[0])
    assert torch.equal(found[1].packed_KN, again[1].packed_KN)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[5], CASES[7]], ids=str)
@pytest.mark.parametrize("entropy", [False, True])
def test_statistics_alone(case, route, entropy):
    inputs = make(case)
    found = inputs.statistics(GpuBackend(route), entropy=entropy)
    check_statistics(inputs, exact(inputs), found, extra="entropy" if entropy else None)


def lonely(case, column):
    """Return inputs whose logits are small, but for a column outside the sample, in some rows."""
    inputs = make(case)
    inputs.w_VD[:, 0] = 0
    inputs.w_VD[column] = 0
    inputs.w_VD[column, 0] = 1
    inputs.x_ND[:, 0] = torch.where(torch.arange(case.num_tokens) % 17 == 3, 100.0, 0.0).bfloat16()
    return inputs


@pytest.mark.parametrize("route", ROUTES)
def test_rows_far_from_their_reference_are_done_again(route):
    """A sample of 64 of 300 columns takes every fourth or fifth."""
    inputs = lonely(Case(40, 300, 16), column=6)
    expected = exact(inputs)
    exp_NV, statistics = inputs.score(GpuBackend(route))
    far = inputs.x_ND[:, 0] == 100
    assert (statistics.reference_N[far] > 60).all()
    assert (statistics.reference_N[~far] < 40).all()
    check_score(inputs, expected, exp_NV, statistics, rounding=ROUNDING)


def test_a_sample_of_the_columns_is_reference_enough():
    """No row is done again for logits of an ordinary size: references stay those of the sample."""
    inputs = make(Case(20, 300, 16))
    _, statistics = inputs.score(GpuBackend("fused"))
    maximum_N = exact(inputs).z_NV.amax(1)
    assert (maximum_N - statistics.reference_N > 1e-3).any()


@pytest.mark.parametrize("route", ROUTES)
def test_columns_and_rows_in_chunks(route, monkeypatch):
    """More columns than a block of the pass over logits, more rows than the workspace has room for."""
    monkeypatch.setattr(ways, "rows_at_a_time", lambda *_: 16)
    monkeypatch.setattr(ways, "chunk_shapes", lambda *_: [(5, 4096)])
    inputs = make(Case(23, 4300, 8, num_real=4250, bias=True))
    found = inputs.score(GpuBackend(route), sum_logits=True)
    check_score(inputs, exact(inputs), *found, extra="sum", rounding=ROUNDING)


def test_a_number_of_sms():
    inputs = make(Case(33, 136, 40))
    check_score(inputs, exact(inputs), *inputs.score(GpuBackend(), num_sms=2), rounding=ROUNDING)
    with pytest.raises(ConfigError, match="no num_sms"):
        inputs.score(GpuBackend("library"), num_sms=2)


def test_a_logit_that_is_no_number_shows():
    inputs = make(Case(5, 70, 16))
    inputs.x_ND[2, 3] = torch.nan
    _, statistics = inputs.score(GpuBackend("fused"))
    assert statistics.lse_N.isnan().tolist() == [False, False, True, False, False]


def test_a_workspace_without_room():
    inputs = make(Case(5, 70, 16))
    with pytest.raises(ConfigError, match="max_workspace_bytes leaves 1000 bytes to S, which needs at least 8192 for"):
        inputs.score(GpuBackend(), max_workspace_bytes=1000)


@pytest.mark.parametrize("limit", [1 << 20, 1 << 22, 1 << 26, None])
@pytest.mark.parametrize("shape", [(8192, 131072), (100, 5000), (1, 70)])
def test_the_workspace_is_kept_to(shape, limit, monkeypatch):
    inputs = make(Case(1, 1, 1))
    x, w = torch.empty(1, 1).expand(shape[0], 1), torch.empty(1, 1).expand(shape[1], 1)
    problem = ways.ScoreProblem(x, w, inputs.local_N, shape[1], None, None, 0, None)
    bound = limit or workspace.DEFAULT_BYTES
    for rows, cols in workspace.chunk_shapes(problem, 4096, limit):
        assert 4 * rows * min(cols, shape[1]) <= bound // 2
        assert rows >= 1
        assert cols % 4096 == 0
    if limit != 1 << 20:
        rows = workspace.rows_at_a_time(problem, -(-shape[1] // 128), limit)
        assert workspace.sums_bytes(problem, rows, -(-shape[1] // 128)) <= bound // 4
