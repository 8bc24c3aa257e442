"""Where the models of these tests are, as PIPERT_TEST_DEVICE says: ``cpu``, ``cuda``, or ``as-cuda``.

``as-cuda`` is the CPU, which engines take for a CUDA device whose driver is the stand-in.
"""

import os
import sys
from pathlib import Path

import torch

WHERE = os.environ.get("PIPERT_TEST_DEVICE", "cpu")


def cuda_device() -> torch.device:
    """The CUDA device of this rank, made current; sums on it no longer depend on when their parts are ready."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.cuda.init()  # says why, where there is no device
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _device() -> torch.device:
    if WHERE == "cuda":
        return cuda_device()
    if WHERE == "as-cuda":
        sys.path.append(str(Path(__file__).resolve().parents[1] / "fake"))
        import as_cuda

        as_cuda.install()
    return torch.device("cpu")


DEVICE = _device()
