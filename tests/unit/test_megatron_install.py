"""The drop-in engine's door, as far as it opens without Megatron."""

import importlib.metadata
import subprocess
import sys

import pytest

from pipert.errors import ConfigError
from pipert.megatron.install import check_version
from pipert.megatron.options import Options


@pytest.mark.parametrize("version", ["0.15.3", "0.17.0", "1.0"])
def test_an_unknown_version_is_refused_and_the_known_one_named(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ConfigError, match=rf"megatron-core {version} is installed; the drop-in knows 0\.16\.1"):
        check_version()


def test_a_missing_megatron_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'pipert\[megatron\]'"):
        check_version()


def test_options_are_checked_at_once():
    with pytest.raises(ConfigError, match="--pipert-timeout-ms must be positive"):
        Options(timeout_ms=0)
    with pytest.raises(ConfigError):
        Options(costs="F=fast")


def test_importing_it_imports_no_megatron():
    code = "import sys, pipert.megatron; print([name for name in sys.modules if name.startswith('megatron')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_script_that_is_not_there_is_named():
    done = subprocess.run([sys.executable, "-m", "pipert.megatron", "nothing.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "there is no script nothing.py" in done.stderr
