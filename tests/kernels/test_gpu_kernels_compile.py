"""Every kernel, with all tiles that it may be tried with, compiles for Hopper and Ampere within an SM's means."""

import pytest

pytest.importorskip("triton")
from kernel_resources import SHARED_LIMIT, compile_variant, variants

MAX_REGISTERS = 65536

ALL = [(capability, variant) for capability in SHARED_LIMIT for variant in variants(capability)]


@pytest.mark.parametrize(
    ("capability", "variant"),
    ALL,
    ids=[f"sm_{capability}-{variant.kernel.fn.__name__}-{variant.label}" for capability, variant in ALL],
)
def test_it_fits_an_sm(capability, variant):
    took = compile_variant(variant, capability)
    assert took.spilled_bytes == 0
    assert took.registers * 32 * variant.num_warps <= MAX_REGISTERS
    assert took.shared_bytes <= SHARED_LIMIT[capability]
