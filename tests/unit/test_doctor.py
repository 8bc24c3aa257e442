import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from pipert.cli import app, doctor
from pipert.version import __version__

doctor.register(app)


def test_doctor_json_lists_what_is_there():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = {row["name"]: row["found"] for row in json.loads(result.stdout)}
    assert found["pipert"] == found["native core"] == __version__
    assert found["torch"] == importlib.metadata.version("torch")


@pytest.mark.parametrize(("missing", "exit_code"), [("torch", 1), ("pytest-benchmark", 0)])
def test_doctor_tells_what_a_missing_package_costs(monkeypatch, missing, exit_code):
    version = importlib.metadata.version

    def without(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == exit_code
    row = next(row for row in json.loads(result.stdout) if row["name"] == missing)
    assert row["found"] is None
    assert row["cost"]


def test_doctor_looks_for_nsys_on_the_path(monkeypatch, tmp_path):
    def found():
        rows = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
        return next(row for row in rows if row["name"] == "nsys")

    monkeypatch.setenv("PATH", str(tmp_path))
    assert found()["found"] is None
    assert "pipert profile" in found()["cost"]
    (tmp_path / "nsys").touch(mode=0o755)
    assert found()["found"] == str(tmp_path / "nsys")
