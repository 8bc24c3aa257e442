"""Runs a script on the stand-in for a CUDA device: ``run_as_cuda.py SCRIPT [ARGUMENT...]``, or ``-m MODULE ...``.

The environment variable PIPERT_TEST_TRANSPORT names the transport of engines that ask for none.
"""

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import as_cuda

as_cuda.install(os.environ.get("PIPERT_TEST_TRANSPORT"))
_, script, *arguments = sys.argv
if script == "-m":
    module, *arguments = arguments
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
