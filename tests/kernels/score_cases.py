"""Random inputs of S in bf16, and what it must make of them, written out in float64.

Shapes: N tokens, D hidden, V rows of the shard; padded rows hold numbers that must not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    num_tokens: int
    vocab: int
    hidden: int
    num_real: int | None = None
    bias: bool = False
    soft_cap: float | None = None
    scale: float = 1.0
    targets: str = "random"

    def __str__(self):
        return "-".join(str(v) for v in vars(self).values() if v)


@dataclass(frozen=True)
class Inputs:
    case: Case
    x_ND: torch.Tensor
    w_VD: torch.Tensor
    local_N: torch.Tensor
    num_real: int
    bias_V: torch.Tensor | None

    def score(self, backend, **options):
        options = {"sum_logits": False, "max_workspace_bytes": None, "num_sms": None} | options
        shared = {"bias_V": self.bias_V, "soft_cap": self.case.soft_cap}
        return backend.score(self.x_ND, self.w_VD, self.local_N, self.num_real, **shared, **options)

    def statistics(self, backend, **options):
        options = {"entropy": False, "max_workspace_bytes": None, "num_sms": None} | options
        shared = {"bias_V": self.bias_V, "soft_cap": self.case.soft_cap}
        return backend.statistics(self.x_ND, self.w_VD, self.local_N, self.num_real, **shared, **options)


@dataclass(frozen=True)
class Exact:
    """In float64, over the real columns: the logits, the soft cap's derivative, and each row's sums."""

    z_NV: torch.Tensor
    slope_NV: torch.Tensor
    lse_N: torch.Tensor
    target_N: torch.Tensor
    held_N: torch.Tensor


def make(case: Case, device="cpu", seed=0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    num_real = case.vocab if case.num_real is None else case.num_real
    n = case.num_tokens
    local = torch.randint(-1, max(num_real, 1), (n,), generator=generator)
    if case.targets == "repeated":
        local = torch.where(torch.rand(n, generator=generator) < 0.9, num_real // 2, local)
    if case.targets == "ignored" or num_real == 0:
        local = torch.full((n,), -1)
    return Inputs(
        case,
        normal(n, case.hidden).bfloat16().to(device),
        (normal(case.vocab, case.hidden) * case.scale).bfloat16().to(device),
        local.to(device),
        num_real,
        normal(case.vocab).bfloat16().to(device) if case.bias else None,
    )


def exact(inputs: Inputs) -> Exact:
    z = inputs.x_ND.double() @ inputs.w_VD.double().T
    if inputs.bias_V is not None:
        z = z + inputs.bias_V.double()
    slope = torch.ones_like(z)
    if inputs.case.soft_cap is not None:
        u = z / inputs.case.soft_cap
        z, slope = inputs.case.soft_cap * torch.tanh(u), torch.cosh(u) ** -2
    z, slope = z[:, : inputs.num_real], slope[:, : inputs.num_real]
    held = inputs.local_N >= 0
    if inputs.num_real == 0:
        nothing = z.new_zeros(len(z))
        return Exact(z, slope, nothing - torch.inf, nothing, held)
    target = torch.where(held, z.gather(1, inputs.local_N.clamp(min=0)[:, None])[:, 0], 0)
    return Exact(z, slope, z.logsumexp(1), target, held)


def exact_exp(inputs: Inputs, expected: Exact, reference_N: torch.Tensor) -> torch.Tensor:
    """E' [N, V] for these references."""
    exp = torch.zeros(inputs.w_VD.shape[0], len(inputs.x_ND), dtype=torch.float64, device=reference_N.device).T
    if inputs.num_real:
        exp[:, : inputs.num_real] = (expected.z_NV - reference_N.double()[:, None]).exp() * expected.slope_NV
    rows = torch.arange(len(exp), device=exp.device)[expected.held_N]
    exp[rows, inputs.local_N[expected.held_N]] = 0
    return exp


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative Frobenius error; the error itself where nothing is expected."""
    return float((found.double() - expected).norm() / (expected.norm() if expected.any() else 1))


def check_statistics(inputs: Inputs, expected: Exact, statistics, extra: str | None = None) -> None:
    """Against float64; the sums also by their size, where they cancel."""
    size = expected.z_NV.abs().amax(1) if inputs.num_real else torch.ones_like(expected.lse_N)
    found = [t.double() for t in (statistics.lse_N, statistics.target_N, statistics.extra_N)]
    if inputs.num_real == 0:
        assert (statistics.reference_N == -torch.inf).all()
        assert not statistics.packed_KN[1:].any()
        return
    assert ((found[0] - expected.lse_N).abs() <= 1e-5 * (1 + size)).all()
    assert ((found[1] - expected.target_N).abs() <= 1e-5 * (1 + size)).all()
    assert (expected.z_NV.amax(1) - statistics.reference_N.double() <= 32.01).all()
    assert (statistics.reference_N.double() - expected.z_NV.amax(1) <= 1e-5 * (1 + size)).all()
    weight = (expected.z_NV - statistics.reference_N.double()[:, None]).exp()
    terms = {None: 0 * expected.z_NV, "sum": expected.z_NV, "entropy": weight * expected.z_NV}[extra]
    bound = 1e-5 * (terms.abs().sum(1) + 1e-30) * (1 + (size if extra == "entropy" else 0))
    assert ((found[2] - terms.sum(1)).abs() <= bound).all()


def check_score(inputs: Inputs, expected: Exact, exp_NV, statistics, extra=None, rounding=2**-8) -> None:
    """Against float64: every entry of E' to a rounding, exact zeros where there must be some."""
    check_statistics(inputs, expected, statistics, extra)
    want = exact_exp(inputs, expected, statistics.reference_N)
    # fp32 logits of this size are off by so much, which exp multiplies.
    size = 1 + (expected.z_NV.abs().amax().item() if inputs.num_real else 0)
    assert ((exp_NV.double() - want).abs() <= want * (rounding + 1e-5 * size) + 1e-37).all()
    assert not exp_NV[want == 0].any()
