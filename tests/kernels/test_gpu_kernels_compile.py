"""Every kernel, with all tiles that it may be tried with, compiles for Hopper and Ampere within an SM's means."""

import json
import sys

import pytest
from background import ROOT, Background, Command

pytest.importorskip("triton")
from kernel_resources import SHARED_LIMIT, variants

MAX_REGISTERS = 65536

ALL = [(capability, variant) for capability in SHARED_LIMIT for variant in variants(capability)]
BACKGROUND = Background({"all": Command([sys.executable, ROOT / "profiles" / "kernel_resources.py", "--json"])})


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("capability", "variant"),
    ALL,
    ids=[f"sm_{capability}-{variant.kernel.fn.__name__}-{variant.label}" for capability, variant in ALL],
)
def test_it_fits_an_sm(capability, variant):
    status, output = BACKGROUND.result("all")
    assert status == 0, output[-6000:]
    took = json.loads(output.splitlines()[-1])[f"sm_{capability} {variant.name}"]
    assert took["spilled_bytes"] == 0
    assert took["registers"] * 32 * variant.num_warps <= MAX_REGISTERS
    assert took["shared_bytes"] <= SHARED_LIMIT[capability]
