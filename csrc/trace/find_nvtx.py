"""Print the folder that ``nvtx3/nvToolsExt.h`` lies in, nothing where there is none: ``find_nvtx.py [FOLDER ...]``.

The folders given are looked at first, then the CUDA toolkit, then the Python wheels ``nvidia-nvtx`` (CUDA 13) and
``nvidia-nvtx-cu12``. One that also has the headers of the payload extension is taken before one that has not.
"""

import importlib.util
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

TOOLKIT = pathlib.Path("/usr/local/cuda")


def _candidates(given: Sequence[str]) -> Iterator[pathlib.Path]:
    yield from map(pathlib.Path, given)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        yield pathlib.Path(nvcc).resolve().parents[1] / "include"
    yield from (pathlib.Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ)
    yield TOOLKIT / "include"
    wheels = importlib.util.find_spec("nvidia")
    for folder in [] if wheels is None else wheels.submodule_search_locations or []:
        yield from sorted(pathlib.Path(folder).glob("cu*/include"), reverse=True)
        yield pathlib.Path(folder) / "nvtx" / "include"


def find_nvtx(given: Sequence[str] = ()) -> pathlib.Path | None:
    """Return the folder to include from; None where the headers are missing."""
    found = [folder for folder in _candidates(given) if (folder / "nvtx3" / "nvToolsExt.h").is_file()]
    with_payload = (folder for folder in found if (folder / "nvtx3" / "nvToolsExtPayload.h").is_file())
    return next(with_payload, found[0] if found else None)


if __name__ == "__main__":
    print(find_nvtx(sys.argv[1:]) or "")
