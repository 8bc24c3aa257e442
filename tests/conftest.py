"""Makes the helpers of this folder importable from the tests below it; one thread per process, as torchrun has it."""

import os

# On small tensors a second thread only waits, and beside other processes it waits long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
