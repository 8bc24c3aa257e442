"""The passes of a shard beside the bare products, and a whole layer beside a peer's: speed, memory, errors."""

from __future__ import annotations

import functools

import torch

from pipert.bench import gpu
from pipert.bench.figure import Figure, Unavailable
from pipert.bench.vocab import rounds
from pipert.bench.vocab.batch import random_batch
from pipert.bench.vocab.exact import Errors, Exact, exact
from pipert.bench.vocab.floor import Floor
from pipert.bench.vocab.ours import Ours, bounded_loss
from pipert.bench.vocab.peers import PEERS, by_autograd
from pipert.bench.vocab.shapes import BESIDE_PEERS, SHAPES, Shape

FLOOR_ROUNDS = 15
PEER_ROUNDS = 7
BARS = {"S+T": 0.92, "T": 0.98, "forward only": 0.92}
"""Of the floor's rate, on shapes that have bars."""
PRODUCTS = {"S+T": 3, "T": 1, "forward only": 1}
MOST_LOSS_ERROR = 1e-5
MOST_GRAD_ERROR = 3e-3


def floor(part: str) -> list[Figure]:
    """Return what the shapes of a part reach of the floor, and the memory that a shard takes beside X, W and dX.

    Raises:
        Unavailable: torch does not compute on this device.
    """
    device = _device()
    return [figure for shape in SHAPES[part] for figure in _beside_floor(shape, device)]


def _beside_floor(shape: Shape, device: torch.device) -> list[Figure]:
    batch = random_batch(shape, device)
    ours, bare = Ours(batch), Floor(batch)
    state = ours.score()
    everybodys = ours.combined(state.statistics)
    times = rounds.in_turns(
        {
            "S+T": ours.step,
            "S+T, floor": bare.step,
            "T": functools.partial(ours.weight_grad, state, everybodys),
            "T, floor": bare.weight_grad,
            "forward only": ours.forward,
            "forward only, floor": bare.logits,
        },
        FLOOR_ROUNDS,
    )
    found = [
        Figure.of(
            f"{what}, {shape.name}",
            "TFLOP/s",
            _rates(shape, num_products, times[what]),
            _rates(shape, num_products, times[f"{what}, floor"]),
            bar=BARS[what] if shape.barred else None,
            relative=True,
            at_least=True,
            setting=f"{shape.setting}; beside its matrix products by torch, {num_products} of them",
        )
        for what, num_products in PRODUCTS.items()
    ]
    mib = rounds.extra_bytes(ours.step) / (1 << 20)
    return [*found, Figure(f"extra memory, S+T, {shape.name}", "MiB", mib, setting=shape.setting)]


def peer(part: str) -> list[Figure]:
    """Return an unsplit layer beside a peer's.

    Raises:
        Unavailable: the peer is not there, or torch does not compute on this device.
    """
    device, cap = _device(), PEERS[part].soft_cap
    shapes = [shape for shape in BESIDE_PEERS if cap or shape.layer.soft_cap is None]
    return [figure for shape in shapes for figure in _beside_peer(part, shape, device)]


def _beside_peer(part: str, shape: Shape, device: torch.device) -> list[Figure]:
    other, batch, expected = PEERS[part], random_batch(shape, device), _expected(shape, device)
    theirs, ours = other.side(batch), Ours(batch)
    name, setting = f"beside {other.name}, {shape.name}", f"{shape.setting}; {theirs.setting}"
    errors = [expected.errors_of(step()) for step in (ours.step, theirs.step)]
    steps = {"peer": theirs.step, "S+T": ours.step}
    extra = {side: rounds.extra_bytes(step) for side, step in steps.items()}
    if other.bounded:
        steps["bounded S+T"] = by_autograd(batch, functools.partial(bounded_loss, batch, extra["peer"]))
        steps["bounded S+T"]()  # tuning and compiling may take more memory
        extra["bounded S+T"] = rounds.extra_bytes(steps["bounded S+T"])
    times = rounds.in_turns(steps, PEER_ROUNDS)
    rates = {side: _rates(shape, 3, times_ms) for side, times_ms in times.items()}
    mib = {side: num_bytes / (1 << 20) for side, num_bytes in extra.items()}
    found = []
    for side in list(steps)[1:]:
        speed_bar, memory_bar = (other.speed_bar, other.memory_bar) if shape.barred and side == "S+T" else (None, None)
        speed = Figure.of(
            f"{side} {name}",
            "TFLOP/s",
            rates[side],
            rates["peer"],
            bar=speed_bar,
            relative=True,
            at_least=True,
            setting=setting,
        )
        memory = f"extra memory, {side} {name}"
        found += [speed, Figure(memory, "MiB", mib[side], mib["peer"], memory_bar, relative=True, setting=setting)]
    return [*found, *_error_figures(name, setting, *errors, held=other.is_measure)]


def _error_figures(name: str, setting: str, ours: Errors, theirs: Errors, *, held: bool) -> list[Figure]:
    bars = {
        "loss": MOST_LOSS_ERROR,
        "input_grad": min(MOST_GRAD_ERROR, 2 * theirs.input_grad + 1e-4),
        "weight_grad": min(MOST_GRAD_ERROR, 2 * theirs.weight_grad + 1e-4),
    }
    titles = {"loss": "error of the loss", "input_grad": "error of dX", "weight_grad": "error of dW"}
    return [
        Figure(
            f"{titles[what]} {name}",
            "",
            getattr(ours, what),
            getattr(theirs, what),
            bar if held else None,
            setting=f"{setting}; relative to float64",
        )
        for what, bar in bars.items()
    ]


@functools.cache
def _expected(shape: Shape, device: torch.device) -> Exact:
    return exact(random_batch(shape, device))


def _rates(shape: Shape, num_products: int, times_ms: list[float]) -> list[float]:
    return [num_products * shape.product_flops / ms / 1e9 for ms in times_ms]


def _device() -> torch.device:
    device = gpu.device()
    if not gpu.has_torch(device):
        raise Unavailable("an output layer needs a device that torch computes on")
    return device.torch_device
