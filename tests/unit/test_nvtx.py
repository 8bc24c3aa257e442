"""NVTX without a tool: who decides, what it costs, where the headers are found, and steps from Python."""

import sys
import types

import nvtx_tool
import pytest
import torch
from plan_driver import Driver
from torch import nn

import pipert
from pipert import ConfigError, _core
from pipert.engine import step_range

needs_nvtx = pytest.mark.skipif(not _core.built_with_nvtx(), reason="the core was built without NVTX")


@pytest.fixture(autouse=True)
def _no_tool(monkeypatch):
    monkeypatch.delenv("PIPERT_NVTX", raising=False)
    monkeypatch.delenv("NVTX_INJECTION64_PATH", raising=False)


def make_driver():
    plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=2, num_microbatches=2))
    return Driver(plan, _core.Channels.local(plan.native), range(2))


def test_without_a_tool_nothing_is_shown():
    assert not _core.nvtx_wanted()


@needs_nvtx
def test_ops_can_be_shown_to_nobody(monkeypatch):
    monkeypatch.setenv("PIPERT_NVTX", "1")
    assert _core.nvtx_wanted()
    driver = make_driver()
    driver.step(0)
    assert len(driver.calls) == 8


def test_a_wish_that_cannot_be_understood_is_refused(monkeypatch):
    monkeypatch.setenv("PIPERT_NVTX", "yes")
    with pytest.raises(ConfigError, match='PIPERT_NVTX is "yes": 1 shows ops to NVTX tools, 0 does not'):
        make_driver()
    monkeypatch.setenv("PIPERT_NVTX", "0")
    assert not _core.nvtx_wanted()
    make_driver().step(0)


@needs_nvtx
def test_the_cost_of_a_range_is_measured():
    cost = _core.nvtx_benchmark(320_000)
    assert cost["loop"] > 0
    assert 0 < cost["off"] < 100
    assert 0 < cost["on"] < 300
    with pytest.raises(ConfigError, match="iterations must be positive, got 0"):
        _core.nvtx_benchmark(0)


@needs_nvtx
def test_a_step_is_a_range_of_the_nvtx_package(monkeypatch):
    calls = []

    class Annotate:
        def __init__(self, message, domain):
            self.message = f"{domain}: {message}"

        def __enter__(self):
            calls.append(f"push {self.message}")

        def __exit__(self, *_):
            calls.append(f"pop {self.message}")

    monkeypatch.setitem(sys.modules, "nvtx", types.SimpleNamespace(annotate=Annotate))
    step_range._package.cache_clear()
    plan = pipert.compile(pipert.schedules.build("1f1b", num_ranks=1, num_microbatches=1))
    inputs, targets = torch.randn(2, 3), torch.randn(2, 3)
    try:
        with pipert.Engine(plan, {0: nn.Linear(3, 3)}, nn.functional.mse_loss) as engine:
            engine.step(inputs, targets)  # nobody wants to see it
            monkeypatch.setenv("PIPERT_NVTX", "1")
            engine.step(inputs, targets)
            assert calls == ["push pipert: step 1", "pop pipert: step 1"]
            with pytest.raises(ConfigError):
                engine.step(inputs, [])
        assert calls[2:] == ["push pipert: step 2", "pop pipert: step 2"]
    finally:
        step_range._package.cache_clear()


@needs_nvtx
def test_without_the_nvtx_package_a_step_is_not_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # its import fails
    monkeypatch.setenv("PIPERT_NVTX", "1")
    step_range._package.cache_clear()
    try:
        with step_range._range(None):
            pass
    finally:
        step_range._package.cache_clear()


def headers(folder, *names):
    (folder / "nvtx3").mkdir(parents=True)
    for name in names:
        (folder / "nvtx3" / name).touch()
    return folder


@pytest.fixture
def no_headers(monkeypatch, tmp_path):
    """A machine without a toolkit and without a wheel."""
    monkeypatch.setattr(nvtx_tool.finder, "TOOLKIT", tmp_path / "nowhere")
    monkeypatch.setattr(nvtx_tool.finder.shutil, "which", lambda name: None)
    monkeypatch.setattr(nvtx_tool.finder.importlib.util, "find_spec", lambda name: None)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_headers")
class TestFindingTheHeaders:
    def test_there_may_be_none(self, tmp_path):
        assert nvtx_tool.finder.find_nvtx() is None
        assert nvtx_tool.finder.find_nvtx([tmp_path]) is None

    def test_those_with_the_payload_extension_come_first(self, tmp_path):
        plain = headers(tmp_path / "plain", "nvToolsExt.h")
        full = headers(tmp_path / "full", "nvToolsExt.h", "nvToolsExtPayload.h")
        assert nvtx_tool.finder.find_nvtx([plain]) == plain
        assert nvtx_tool.finder.find_nvtx([plain, full]) == full

    def test_the_toolkit_of_nvcc_and_of_the_environment(self, monkeypatch, tmp_path):
        home = headers(tmp_path / "home" / "include", "nvToolsExt.h")
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
        assert nvtx_tool.finder.find_nvtx() == home
        toolkit = headers(tmp_path / "toolkit" / "include", "nvToolsExt.h")
        monkeypatch.setattr(nvtx_tool.finder.shutil, "which", lambda name: str(tmp_path / "toolkit" / "bin" / name))
        assert nvtx_tool.finder.find_nvtx() == toolkit

    def test_the_wheels(self, monkeypatch, tmp_path):
        package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
        monkeypatch.setattr(nvtx_tool.finder.importlib.util, "find_spec", {"nvidia": package}.get)
        cu12 = headers(tmp_path / "nvidia" / "nvtx" / "include", "nvToolsExt.h")
        assert nvtx_tool.finder.find_nvtx() == cu12
        cu13 = headers(tmp_path / "nvidia" / "cu13" / "include", "nvToolsExt.h")
        assert nvtx_tool.finder.find_nvtx() == cu13


@pytest.mark.parametrize("headers_found", [False, True])
def test_the_native_part_with_and_without_headers(tmp_path, headers_found):
    """The C++ test, of a core without NVTX too."""
    include = nvtx_tool.finder.find_nvtx()
    if headers_found and include is None:
        pytest.skip("no NVTX headers: pip install nvidia-nvtx")
    csrc = nvtx_tool.ROOT / "csrc"
    backend = "nvtx3/domain.cpp" if headers_found else "no_nvtx/no_domain.cpp"
    sources = [csrc / "trace" / name for name in ("nvtx.cpp", "nvtx_benchmark.cpp", backend)]
    sources += [csrc / "core" / "error.cpp", nvtx_tool.ROOT / "tests" / "native" / "test_nvtx.cpp"]
    options = [f"-I{csrc}", "-pthread", *([f"-I{include}"] if headers_found else [])]
    program = nvtx_tool.compile_cpp(tmp_path / "test_nvtx", *options, *sources, "-ldl")
    nvtx_tool.run([program, str(int(headers_found))])
