"""Lets the engines of a process take CPU tensors for those of a CUDA device whose driver is the stand-in.

Streams, events, device memory and IPC are then the stand-in's, asynchronous like real ones; only compute differs: a
handler first waits until the compute stream has come to it, then runs on the CPU. So an engine on such a device gives a
wrong result where a wait is missing, and the right one, bit for bit, where none is.
"""

import ctypes
import os
import weakref

import torch
from libraries import fake_cuda, fake_nccl

from pipert.engine import engine, graphed, lanes
from pipert.engine.device import CudaDevice


class FakeDevice(CudaDevice):
    def __init__(self):
        super().__init__(0)
        self.torch_device = torch.device("cpu")
        self.driver = ctypes.CDLL(os.environ["PIPERT_LIBCUDA"])
        self.use_context()
        stream = ctypes.c_void_p()
        self.call("cuStreamCreateWithPriority", ctypes.byref(stream), 1, 0)
        self.stream = stream.value
        self.parameters = []  # whose gradients a captured step makes
        self.num_random = 0

    def use_context(self):
        context, current = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuCtxGetCurrent", ctypes.byref(current))
        if not current.value:
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
            self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        result = getattr(self.driver, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"{name} returned {result}")

    def holds(self, tensor):
        return tensor.is_cpu

    def current_stream(self):
        return self.stream

    def synchronize(self):
        self.call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def warm_up(self, run):
        return run()

    def capture(self, run):
        """Run instead of capturing; a launch runs again and puts what comes out where it was the first time."""
        losses = run()
        grads = {id(p): p.grad for p in self.parameters}

        def launch():
            for parameter in self.parameters:
                parameter.grad = None
            for held, loss in zip(losses, run(), strict=True):
                held.value.copy_(loss.value)
            for parameter in self.parameters:
                grads[id(parameter)].copy_(parameter.grad)

        return losses, launch

    def capture_op(self, run):
        """Run, and capture nothing: launches of the graph change nothing."""
        run()
        graph = ctypes.c_void_p()
        self.call("cuStreamBeginCapture_v2", ctypes.c_void_p(self.stream), 2)
        self.call("cuStreamEndCapture", ctypes.c_void_p(self.stream), ctypes.byref(graph))
        return graph.value

    def draws(self, run):
        self.num_random = 0
        run()
        return self.num_random > 0

    def empty(self, num_bytes):
        if num_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        memory = (ctypes.c_uint8 * num_bytes).from_address(address.value)
        weakref.finalize(memory, self.driver.cuMemFree_v2, ctypes.c_uint64(address.value))
        return torch.frombuffer(memory, dtype=torch.uint8)


class FakeDeviceLanes(lanes.DeviceLanes):
    def __init__(self, plan, settings, device):
        super().__init__(plan, settings, device)
        bind = self.bind

        def after_waiting(handler):
            def run(microbatch):
                device.synchronize()
                handler(microbatch)

            return run

        self.bind = lambda handlers: bind([after_waiting(handler) for handler in handlers])

    def step(self, step):
        super().step(step)
        self._cuda.synchronize()  # what is freed now is used again at once, not in the order of a stream


def install(transport=None):
    """From now on, for every engine that is made in this process; ``transport`` is what they use by default."""
    os.environ.setdefault("PIPERT_LIBCUDA", str(fake_cuda()))
    if transport is not None:
        os.environ.setdefault("PIPERT_NCCL", str(fake_nccl()))
        choose = engine.choose_transport
        engine.choose_transport = lambda asked, **place: choose(asked or transport, **place)
    device = FakeDevice()
    engine.device_of = lambda stages: device
    lanes.DeviceLanes = graphed.DeviceLanes = FakeDeviceLanes
    return device
