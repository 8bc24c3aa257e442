"""What may be imported when: planning needs no torch, and importing pipert needs nothing that is heavy."""

import subprocess
import sys

import pytest

# Runs the command line with imports of torch and numpy made to fail.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from pipert.cli import main
main()
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_import_needs_neither_torch_nor_the_core():
    result = run("import sys, pipert; print(sorted({'torch', 'numpy', 'pipert._core'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]], ids=" ".join)
def test_commands_without_torch(arguments):
    result = run(WITHOUT_TORCH, *arguments)
    assert result.returncode == 0, result.stderr


def test_unknown_name_is_an_attribute_error():
    import pipert

    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = pipert.compil
