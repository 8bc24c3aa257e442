"""Builds csrc/ with CMake into pipert/_core: with CUDA where nvcc works, host-only elsewhere.

Environment: PIPERT_CUDA=OFF builds host-only even where nvcc is there, ON insists on CUDA; PIPERT_BUILD_TYPE (Release);
PIPERT_BUILD_DIR, a folder that is kept, so that the next build is incremental; CMAKE_ARGS is passed on to CMake.
"""

import os
import pathlib
import runpy
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
VERSION = runpy.run_path(str(ROOT / "pipert" / "version.py"))["__version__"]


class CMakeBuild(build_ext):
    """Runs CMake; it writes the extension where setuptools looks for it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = pathlib.Path(os.environ.get("PIPERT_BUILD_DIR", self.build_temp)).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        generator = ["-GNinja"] if shutil.which("ninja") else []
        configure = [
            "cmake",
            "-S",
            str(ROOT / "csrc"),
            "-B",
            str(build_dir),
            *generator,
            f"-DCMAKE_BUILD_TYPE={os.environ.get('PIPERT_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPIPERT_VERSION={VERSION}",
            f"-DPIPERT_MODULE_DIR={output.parent}",
            f"-DPIPERT_CUDA={os.environ.get('PIPERT_CUDA', 'AUTO')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build_dir), "--target", "_core", "-j", jobs], check=True)


KERNELS = [f"pipert.{name}" for name in find_packages(include=["kernels", "kernels.*"])]

setup(
    version=VERSION,
    # Where `make lint` has run, pipert/kernels is a link to kernels/.
    packages=find_packages(include=["pipert", "pipert.*"], exclude=["pipert.kernels", "pipert.kernels.*"]) + KERNELS,
    package_dir={"pipert.kernels": "kernels"},
    ext_modules=[Extension("pipert._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
