"""What is in ``interpreted`` is run by test_gpu_interpreted.py, in a process whose Triton is an interpreter."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
