"""Names of parameters that do not depend on which rank and chunk hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn


def named_parameters(chunks: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the parameters of some model chunks, each under its name in the whole model.

    Wrappers (data parallelism, mixed precision) leave no trace in it, and a layer is counted as the model counts it
    (``layer_number``), not as its chunk does.
    """
    for chunk in chunks:
        module = _unwrapped(chunk)
        layers = {
            name: f"{name.rpartition('.')[0]}.{layer.layer_number - 1}"
            for name, layer in module.named_modules()
            if name.rpartition(".")[2].isdigit() and isinstance(getattr(layer, "layer_number", None), int)
        }
        for name, parameter in module.named_parameters():
            yield _renamed(name, layers), parameter


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = getattr(module, "module", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _renamed(name: str, layers: dict[str, str]) -> str:
    for prefix in _prefixes(name):
        if prefix in layers:
            return layers[prefix] + name[len(prefix) :]
    return name


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
