"""Everything that `pipert bench p2p` measures: messages between ranks on one CUDA device."""

from __future__ import annotations

from collections.abc import Callable

from pipert.bench import gemm, mps, pair, worker
from pipert.bench.figure import Figure


def _under_mps() -> list[Figure]:
    with mps.daemon() as environment:
        return worker.measure("pair_ipc", 2, environment)


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "local": lambda: pair.in_one_process("local"),
    "ipc": lambda: pair.in_one_process("ipc"),
    "nccl": pair.nccl,
    "beside_a_gemm": gemm.measure,
    "ipc_two_processes": lambda: worker.measure("pair_ipc", 2),
    "ipc_two_processes_mps": _under_mps,
}
