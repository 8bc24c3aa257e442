"""The fake CUDA driver and the fake NCCL, as Python tests get them."""

import ctypes
import subprocess
import sys

from fake.libraries import fake_cuda, fake_nccl


def test_the_driver_is_compiled_once_and_loads():
    library = fake_cuda()
    made = library.stat().st_mtime
    assert fake_cuda() == library
    assert library.stat().st_mtime == made
    driver = ctypes.CDLL(str(library))
    version = ctypes.c_int()
    assert driver.cuInit(0) == 0
    assert driver.cuDriverGetVersion(ctypes.byref(version)) == 0
    assert version.value == 13000


def test_nccl_loads():
    version = ctypes.c_int()
    assert ctypes.CDLL(str(fake_nccl())).ncclGetVersion(ctypes.byref(version)) == 0
    assert version.value == 22809


def test_a_process_ends_though_a_stream_waits():
    program = f"""
import ctypes
driver = ctypes.CDLL({str(fake_cuda())!r})
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
assert driver.cuInit(0) == 0
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert driver.cuCtxSetCurrent(context) == 0
assert driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(4)) == 0
assert driver.cuStreamWaitValue32_v2(None, memory, 5, 1) == 0
assert driver.cuStreamQuery(None) == 600
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
