"""What is refused, and what it says."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pipert.errors import ConfigError
from pipert.kernels import (
    LossOptions,
    OutputShard,
    VocabParallelLinearCrossEntropy,
    VocabShard,
    backend_choice,
    vocab_parallel_linear_cross_entropy,
)
from pipert.kernels.reference.backend import ReferenceBackend

W, X, TARGETS = torch.randn(38, 7), torch.randn(3, 7), torch.tensor([0, 36, -100])


def loss(x=X, w=W, targets=TARGETS, shard=VocabShard(37), **options):  # noqa: B008
    return vocab_parallel_linear_cross_entropy(x, w, targets, shard=shard, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"targets": torch.tensor([0, 37, 99])},
            r"target 1 is 37, outside of the vocabulary 0..36 and not ignore",
        ),
        ({"targets": torch.tensor([0, 1, -1])}, "target 2 is -1"),
        ({"targets": torch.tensor([0, -100, 1]), "options": LossOptions(ignore_index=-1)}, "target 1 is -100"),
        ({"targets": torch.tensor([0, -100, 40]), "max_workspace_bytes": 1}, "target 2 is 40"),
        ({"targets": torch.tensor([0.0, 1.0, 2.0])}, "integers, not torch.float32"),
        ({"targets": torch.tensor([0, 1])}, r"targets must be \[3\], one for each row of x, not \[2\]"),
        ({"targets": TARGETS[:, None]}, r"targets must be \[3\]"),
        ({"w": W[:37]}, r"must be \[38, hidden size\], not \[37, 7\]: a vocabulary of 37 is padded at its end to 38"),
        ({"w": W[:, :6]}, r"x must be \[\.\.\., 6\]"),
        ({"w": W.bfloat16()}, r"x is torch.float32, but the weight is torch.bfloat16: convert one"),
        ({"x": X.int(), "w": W.int()}, "one of the dtypes .* not torch.int32"),
        ({"x": X.to("meta")}, "x is on meta, but the weight is on cpu"),
        ({"targets": TARGETS.to("meta")}, "targets are on meta"),
        ({"bias": torch.zeros(37)}, r"bias must be \[38\]"),
        ({"bias": torch.zeros(38).double()}, "the bias is torch.float64, but the weight is torch.float32"),
        ({"token_weights": torch.ones(4)}, r"token_weights must be \[3\]"),
        ({"reduction": "avg"}, "none, sum or mean, not 'avg'"),
        ({"max_workspace_bytes": 0}, "max_workspace_bytes must be at least 1"),
        ({"num_sms": 0}, "num_sms must be at least 1"),
        ({"shard": VocabShard(76, 2), "w": W}, "one shard of 2 cannot make the loss alone"),
    ],
)
def test_the_function_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        loss(**arguments)


def test_options_and_shards_refuse():
    with pytest.raises(ConfigError, match="cannot be used together"):
        LossOptions(label_smoothing=0.1, soft_cap=30.0)
    for wrong in ({"label_smoothing": 1.0}, {"z_loss": -1.0}, {"soft_cap": 0.0}, {"soft_cap": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LossOptions(**wrong)
    with pytest.raises(ConfigError, match="no shard 2 of 2"):
        VocabShard(10, 2, 2)
    with pytest.raises(ConfigError, match="cannot split a vocabulary of 0"):
        VocabShard(0)


def test_the_passes_refuse():
    layer = OutputShard(W, VocabShard(37), LossOptions(label_smoothing=0.1))
    with pytest.raises(ConfigError, match="algorithm must be 1 or 2"):
        layer.score(X, TARGETS, algorithm=3)
    with pytest.raises(ConfigError, match=r"x must be \[tokens, 7\]"):
        layer.score(X[None], TARGETS[None])
    with pytest.raises(ConfigError, match="without label_smoothing"):
        layer.statistics(X, TARGETS, entropy=True)
    state = layer.score(X, TARGETS)
    with pytest.raises(ConfigError, match=r"main_grad must be \[38, 7\] in torch.float32"):
        layer.add_weight_grad(state, state.statistics, torch.ones(3), torch.zeros(37, 7))
    with pytest.raises(ConfigError, match="contiguous"):
        layer.add_weight_grad(state, state.statistics, torch.ones(3), torch.zeros(7, 38).T)


def test_the_module_refuses():
    with pytest.raises(ConfigError, match="hidden_size"):
        VocabParallelLinearCrossEntropy(0, 37)
    layer = VocabParallelLinearCrossEntropy(7, 37)
    with pytest.raises(ConfigError, match=r"unsplit weight must be \[37, 7\]"):
        layer.load_full(W)
    with pytest.raises(ConfigError, match="unsplit bias must be absent"):
        layer.load_full(W[:37], torch.zeros(37))
    layer.weight.main_grad = torch.zeros(38, 7, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"weight's main_grad must be \[38, 7\] in torch.float32"):
        layer(X, TARGETS)


def test_a_target_out_of_range_has_the_loss_nan_where_looking_would_wait(monkeypatch):
    monkeypatch.setattr("pipert.kernels.output_shard.check_range", lambda *_: None)
    found = loss(targets=torch.tensor([5, 37, -100]), reduction="none")
    assert found.isnan().tolist() == [False, True, False]


def test_which_functions_compute(monkeypatch):
    def tensor(dtype, is_cuda):
        return SimpleNamespace(dtype=dtype, is_cuda=is_cuda)

    for dtype in (torch.float64, torch.float32, torch.float16):
        assert isinstance(backend_choice.backend_for(tensor(dtype, True)), ReferenceBackend)
    assert isinstance(backend_choice.backend_for(tensor(torch.bfloat16, False)), ReferenceBackend)
    for name in [name for name in sys.modules if name.startswith("pipert.kernels.gpu")]:
        monkeypatch.delitem(sys.modules, name)
    kernels = object()
    monkeypatch.setitem(sys.modules, "pipert.kernels.gpu.backend", SimpleNamespace(backend=lambda: kernels))
    assert backend_choice.backend_for(tensor(torch.bfloat16, True)) is kernels

    def no_triton(name):
        raise ModuleNotFoundError(f"no module {name}", name=missing)

    monkeypatch.setattr(backend_choice.importlib, "import_module", no_triton)
    missing = "triton"
    with pytest.raises(ConfigError, match=r"install pipert\[cuda\]"):
        backend_choice.backend_for(tensor(torch.bfloat16, True))
    missing = "pipert.kernels.gpu.backend"
    with pytest.raises(ModuleNotFoundError):
        backend_choice.backend_for(tensor(torch.bfloat16, True))


def test_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import pipert.kernels as k; print(k.VocabShard(37).size)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "38\n"
