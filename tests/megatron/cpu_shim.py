"""Lets megatron-core run on CPUs, over gloo. For tests alone; where there is a CUDA device it changes nothing.

Megatron names the device in its code. What it asks of CUDA is answered by the CPU: the current device is the CPU,
``device="cuda"`` means it, streams and synchronisation are nothing, and CUDA's random number generator is the CPU's, so
that dropout and initialisation are as reproducible as on a GPU.
"""

import contextlib
import copy
import functools
import importlib

import torch

_FACTORIES = ("arange", "empty", "full", "ones", "rand", "randint", "randn", "tensor", "zeros")
_CPU = torch.device("cpu")


class _NoStream:
    """A stream or an event: whatever is asked of it is done."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: self


def install():
    """Change torch and megatron-core, once."""
    if torch.cuda.is_available() or torch.cuda.current_device is _current_device:
        return
    importlib.import_module("megatron.core.models.gpt")  # loads torch's compiler, which wants torch as it is
    from megatron.core.tensor_parallel import random

    torch.compiler.set_stance("force_eager")
    cuda = torch.cuda
    cuda.current_device = _current_device
    cuda.synchronize = cuda.empty_cache = cuda.set_device = _nothing
    cuda.current_stream = cuda.Stream = cuda.default_stream = lambda *args, **kwargs: _NoStream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.manual_seed = torch.manual_seed
    cuda.manual_seed_all = _nothing  # torch.manual_seed itself calls it
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.is_current_stream_capturing = lambda: False
    cuda.memory_allocated = cuda.max_memory_allocated = lambda *args, **kwargs: 0
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = _type
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    from megatron.core.transformer import torch_norm
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # the router asks for it also where Transformer Engine is missing
    token_dispatcher.maybe_move_tensor_to_cpu = _to_host
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    random.CudaRNGStatesTracker.fork = _fork
    torch_norm.WrappedTorchNorm.__new__ = _norm(torch_norm.WrappedTorchNorm.__new__)


def _current_device():
    return _CPU


def _type(self, dtype=None, **kwargs):
    """Name the type as on a GPU: the optimizer insists on it when it clips."""
    result = torch._C.TensorBase.type(self, dtype, **kwargs)
    return result.replace("torch.", "torch.cuda.") if dtype is None else result


def _nothing(*args, **kwargs):
    return None


def _on_cpu(factory):
    @functools.wraps(factory)
    def make(*args, **kwargs):
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return make


@contextlib.contextmanager
def _fork(self, name="model-parallel-rng"):
    """Do as the tracker does, which warns when the CPU's generator has moved."""
    before = torch.get_rng_state()
    torch.set_rng_state(self.states_[name])
    try:
        yield
    finally:
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(before)


def _to_host(tensor, as_numpy=False, record_stream=False):
    """Give what the dispatcher has of a GPU's tensor: numbers, for the sizes of an all-to-all."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _norm(make):
    """Let torch's norms, which stand in for Apex's, be part of sequence parallelism as Apex's are: by a mark."""

    @functools.wraps(make)
    def new(cls, config, *args, **kwargs):
        plain = copy.copy(config)
        plain.sequence_parallel = False
        norm = make(cls, plain, *args, **kwargs)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm

    return new
