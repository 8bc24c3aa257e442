"""The native executor by itself: whatever takes long on the device, nothing is read or overwritten too early."""

import random

import pytest
import torch
from device_driver import DeviceDriver
from where import WHERE

import pipert
from pipert import _core
from pipert.engine.device import CudaDevice

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda(device):
    if WHERE == "as-cuda":
        import as_cuda

        return as_cuda.FakeDevice()
    return CudaDevice(device.index)


def spins(cuda, max_us, seed):
    """Delays of up to ``max_us``, now and then; the stand-in's device waits instead, as its compute is the host's."""
    chance = random.Random(seed)

    def hold_up():
        if WHERE == "as-cuda":
            cuda.synchronize()
        elif chance.random() < 0.4:
            _core.cuda_spin(cuda.current_stream(), chance.randrange(max_us * 1000))

    return hold_up


@pytest.mark.parametrize("transport", ["local", "ipc"])
@pytest.mark.parametrize(("max_words", "max_us"), [(1 << 20, 50), (1 << 8, 300)], ids=["lanes", "compute"])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-v", "dualpipe"])
def test_words_arrive_whatever_takes_long(cuda, schedule, max_words, max_us, transport):
    plan = pipert.compile(pipert.schedules.build(schedule, num_ranks=4, num_microbatches=8))
    driver = DeviceDriver(plan, cuda, spins(cuda, max_us, seed=1), transport=transport, max_words=max_words)
    for step in range(4):
        driver.step(step)
    driver.executor.wait()
    records = driver.executor.trace()
    assert driver.num_wrong.item() == 0
    assert len(records) // 32 == plan.num_ops
    assert len(driver.sent) == sum("SEND" in text for text in plan.op_text) > 0
    driver.close()


@pytest.mark.kernels
def test_a_side_stream_of_the_callers(cuda):
    """The step begins and ends on the stream that it is given, whatever else runs."""
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=2, num_microbatches=4))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        driver = DeviceDriver(plan, cuda, spins(cuda, 200, seed=2))
        for step in range(3):
            driver.step(step)
        assert driver.num_wrong.item() == 0
    driver.close()
