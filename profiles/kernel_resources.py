"""What each kernel takes of an SM, by the compiler: registers, spills and shared memory, without a GPU.

    python profiles/kernel_resources.py [sm_90 | sm_80 | --json]

Every shape of tiles that a kernel may be tried with is compiled ahead of time, with the options that cost the most.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from pipert.kernels.gpu.device.exp_pass import exp_pass
from pipert.kernels.gpu.device.finish import finish_statistics
from pipert.kernels.gpu.device.fused import fused_score
from pipert.kernels.gpu.device.matmul import persistent_matmul
from pipert.kernels.gpu.device.rows import add_target_rows, gather_rows, scale_rows
from pipert.kernels.gpu.device.sample import sample_references
from pipert.kernels.gpu.device.scatter import add_heads, add_runs, sort_tokens
from pipert.kernels.gpu.device.tokens import combine_shards, late_coefficients, locate_targets, token_losses
from pipert.kernels.gpu.tile_configs import TileConfig, product_configs, repair_config, score_configs

#: Shared memory that a program may have, by compute capability.
SHARED_LIMIT = {90: 227 * 1024, 80: 163 * 1024}
_CAPABILITIES = tuple(SHARED_LIMIT)
#: Of all arguments but tiles and bf16 matrices.
_TYPES = {
    "N": "i32", "V": "i32", "D": "i32", "M": "i32", "K": "i32", "num_real": "i32", "num_parts": "i32",
    "num_cols": "i32", "first_row": "i32", "first_col": "i32", "soft_cap": "fp32", "max_gap": "fp32",
    "local_N": "*i64", "order_N": "*i64", "sorted_N": "*i64", "flagged_N": "*i32",
    "statistics_4N": "*fp32", "statistics_KN": "*fp32", "partial_KPN": "*fp32", "logits_ptr": "*fp32",
    "product_ND": "*fp32", "main_VD": "*fp32", "heads_HD": "*fp32", "a_N": "*fp32", "b_N": "*fp32", "scale_N": "*fp32",
    "out_ptr": "*fp32", "targets_N": "*i64", "kept_N": "*i8", "start": "i32", "ignore": "i32", "p": "i32",
    "vocab_size": "i32", "label_smoothing": "fp32", "z_loss": "fp32", "smooth_each": "fp32",
    "parts_p4N": "*fp32", "own_4N": "*fp32", "all_4N": "*fp32", "loss_N": "*fp32", "loss_grad": "*fp32", "q_N": "*fp32",
}  # fmt: skip
#: BIAS, CAP, EXTRA, STORE
_OPTIONS = [
    (False, False, 0, True),
    (True, True, 0, True),
    (True, False, 1, True),
    (True, False, 2, False),
    (True, True, 2, False),
]


@dataclass(frozen=True)
class Variant:
    """A kernel, compiled in one way."""

    kernel: Any
    label: str
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3
    types: dict[str, str] = field(default_factory=dict)
    aligned: tuple[str, ...] = ("D", "V", "num_cols")

    @property
    def name(self) -> str:
        """The kernel's name, and what is special about this way."""
        return f"{self.kernel.fn.__name__} {self.label}"


@dataclass(frozen=True)
class Resources:
    """What it takes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def variants(capability: int) -> Iterator[Variant]:
    """Yield all that may run on a device of this compute capability."""
    major = capability // 10
    for loads, stores in ((True, True), (True, False), (False, False)):
        for options in _OPTIONS:
            if stores or options[3]:
                configs = score_configs(major, loads=loads, stores=stores, capped=options[1])
                yield from (_fused(config, options, major, loads, stores, repair=False) for config in configs)
        for options in _OPTIONS[:2]:
            yield _fused(repair_config(major, loads=loads), options, major, loads, stores, repair=True)
    for loads in (True, False):
        for config in product_configs(major, loads=loads):
            yield from (_product(config, major, loads, transposed=transposed) for transposed in (False, True))
    for bias, cap, extra, store in _OPTIONS:
        flags = {"BIAS": bias, "CAP": cap, "EXTRA": extra, "STORE": store}
        yield Variant(exp_pass, _marks(flags), {"BLOCK": 4096, **flags}, 8)
    sample = {"BLOCK_R": 32, "BLOCK_C": 64, "BLOCK_K": 64, "BIAS": True, "CAP": True, "UPCAST": False}
    yield Variant(sample_references, "", sample, 4, 4)
    for repaired in (False, True):
        finish = {"BLOCK_R": 32, "BLOCK_P": 32, "EXTRA": 2, "REPAIRED": repaired, "REPAIR_ROWS": 128}
        yield Variant(finish_statistics, "again" if repaired else "", finish, 4)
    for kernel in (scale_rows, add_target_rows, gather_rows):
        yield Variant(kernel, "", {"BLOCK": 2048}, 4)
    yield Variant(sort_tokens, "", {"BLOCK": 32, "CHUNK": 256}, 4)
    yield Variant(add_runs, "", {"BLOCK_B": 16, "BLOCK_C": 1024, "SCALE": True}, 4)
    yield Variant(add_heads, "", {"BLOCK_B": 16, "BLOCK_H": 32, "BLOCK_C": 128}, 4)
    yield Variant(locate_targets, "", {"BLOCK": 256}, 4)
    yield Variant(combine_shards, "", {"WEIGHTED": True, "BLOCK": 256}, 4)
    yield Variant(token_losses, "", {"SMOOTH": True, "ZLOSS": True, "BLOCK": 256}, 4)
    for each in (False, True):
        late = {"EACH": each, "SMOOTH": True, "ZLOSS": True, "CAP": True, "BLOCK": 256}
        yield Variant(late_coefficients, "each" if each else "", late, 4)


def _marks(flags: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" if name == "EXTRA" else name for name, value in flags.items() if value)


def _tile(rows: int, cols: int, *, tma: bool) -> str:
    return f"tensordesc<bf16[{rows},{cols}]>" if tma else "*bf16"


def _blocks(config: TileConfig, *, tma: bool) -> dict[str, Any]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        "FLATTEN": config.flatten,
        "TMA": tma,
        "UPCAST": False,
    }


def _fused(
    config: TileConfig, options: tuple[bool, bool, int, bool], major: int, loads: bool, stores: bool, *, repair: bool
) -> Variant:
    flags = dict(zip(("BIAS", "CAP", "EXTRA", "STORE"), options, strict=True)) | {"REPAIR": repair}
    tma, tma_out = major >= 9 and loads, major >= 9 and stores
    types = {
        "x": _tile(config.block_m, config.block_k, tma=tma),
        "w": _tile(config.block_n, config.block_k, tma=tma),
        "out": _tile(config.block_m, config.block_n // 4, tma=tma_out),
    }
    # TMA needs rows of 8 elements; the compiler knows only of 16.
    aligned = ("D",) * loads + ("V",) * (stores and major < 9)
    label = f"{config} {'TMA' if tma else 'pointers'} {'' if stores else 'odd V '}{_marks(flags)}"
    constants = _blocks(config, tma=tma) | flags | {"TMA_OUT": tma_out}
    return Variant(fused_score, label, constants, config.num_warps, config.num_stages, types, aligned)


def _product(config: TileConfig, major: int, loads: bool, *, transposed: bool) -> Variant:
    tma = major >= 9 and loads
    a_tile = (config.block_k, config.block_m) if transposed else (config.block_m, config.block_k)
    types = {"a": _tile(*a_tile, tma=tma), "b": _tile(config.block_k, config.block_n, tma=tma)}
    aligned = ("N", "M" if transposed else "K") if loads else ()
    label = f"{config} {'TMA' if tma else 'pointers'} {'T' if transposed else 'E W'}"
    constants = _blocks(config, tma=tma) | {"TRANS_A": transposed, "ACCUMULATE": transposed}
    return Variant(persistent_matmul, label, constants, config.num_warps, config.num_stages, types, aligned)


def compile_variant(variant: Variant, capability: int) -> Resources:
    """Compile it, and read what the binary takes."""
    # A kernel that was decorated for the interpreter holds the function all the same.
    kernel = JITFunction(variant.kernel.fn)
    signature = {
        name: "constexpr" if name in variant.constants else variant.types.get(name) or _TYPES.get(name, "*bf16")
        for name in kernel.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (name in variant.aligned and kind == "i32")
    }
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    source = ASTSource(kernel, signature, variant.constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _usage(compiled.asm["cubin"])
    return Resources(registers, spilled, compiled.metadata.shared)


def _usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"{tool} says nothing of registers: {text}")
    return int(found[1]), int(found[2])


def main() -> None:
    """Print a line for each kernel, or one JSON object of all."""
    arguments = sys.argv[1:]
    if arguments == ["--json"]:
        every = ((capability, variant) for capability in _CAPABILITIES for variant in variants(capability))
        took_by_name = {f"sm_{cc} {variant.name}": asdict(compile_variant(variant, cc)) for cc, variant in every}
        print(json.dumps(took_by_name))
        return
    wanted = [int(name.removeprefix("sm_")) for name in arguments] or list(_CAPABILITIES)
    print(f"triton {triton.__version__}")
    for capability in wanted:
        print(f"{'sm_' + str(capability):<82} registers  spilled   shared")
        for variant in variants(capability):
            took = compile_variant(variant, capability)
            print(f"{variant.name:<82} {took.registers:>9} {took.spilled_bytes:>8} {took.shared_bytes:>8}", flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
