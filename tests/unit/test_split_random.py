"""Random modules, random orders: the split backward has the bits of the whole one."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import Scale

from pipert.stages import Stage

WIDTH = 6
UNARY = (
    torch.tanh,
    torch.sin,
    F.gelu,
    lambda x: x * 0.5,
    lambda x: x.view(2, -1).t().reshape(x.shape),
    lambda x: x + 1,
)


class RandomModule(nn.Module):
    """A graph drawn from a seed, over values ``[4, WIDTH]``, with few parameters, so that most are shared."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.matrices = nn.ParameterList(
            [nn.Parameter(torch.randn(WIDTH, WIDTH) / 3) for _ in range(draw.randint(1, 3))]
        )
        self.vectors = nn.ParameterList([nn.Parameter(torch.randn(WIDTH)) for _ in range(draw.randint(1, 2))])
        for p in self.parameters():
            p.requires_grad_(draw.random() > 0.1)
        self.num_inputs = draw.randint(1, 2)
        self.takes_indices = draw.random() < 0.3
        self.steps = [(draw.randrange(10), *(draw.random() for _ in range(4))) for _ in range(draw.randint(2, 9))]
        self.num_outputs = draw.randint(1, 3)
        self.dropout = draw.random() < 0.3

    def forward(self, *inputs):
        values = [F.embedding(inputs[0], self.matrices[0]) if self.takes_indices else inputs[0], *inputs[1:]]
        for kind, a, b, c, d in self.steps:
            value, other = values[int(a * len(values))], values[int(b * len(values))]
            matrix = self.matrices[int(c * len(self.matrices))]
            vector = self.vectors[int(d * len(self.vectors))]
            values.append(self.step(kind, value, other, matrix, vector, b, d))
        return tuple(values[-self.num_outputs :])

    def step(self, kind, value, other, matrix, vector, b, d):
        if kind < 3:
            return F.linear(value, matrix, vector if b < 0.7 else None)
        if kind == 3:
            return value @ (matrix if d < 0.5 else matrix * 0.3)
        if kind == 4:
            return value * other if d < 0.5 else value + other
        if kind == 5:
            return F.layer_norm(value, (WIDTH,), vector, vector if b < 0.5 else None)
        if kind == 6:
            return value * vector + (vector if b < 0.3 else 0)
        if kind == 7:
            return Scale.apply(value, vector)
        if kind == 8 and self.dropout:
            return F.dropout(value, 0.3)
        return UNARY[int(d * len(UNARY))](value)


def inputs_of(module, microbatch):
    torch.manual_seed(1000 + microbatch)
    floats = tuple(torch.randn(4, WIDTH).requires_grad_() for _ in range(module.num_inputs))
    return (torch.randint(WIDTH, (4,)), *floats[1:]) if module.takes_indices else floats


def random_order(draw, num_microbatches):
    """All F, I and W (or B) of some microbatches, each microbatch's in order, all else at random."""
    ops = {mb: ["F", "I", "W"] if draw.random() < 0.8 else ["F", "B"] for mb in range(num_microbatches)}
    while ops:
        microbatch = draw.choice(list(ops))
        yield ops[microbatch].pop(0), microbatch
        if not ops[microbatch]:
            del ops[microbatch]


def run(seed, ops, drop):
    module = RandomModule(seed)
    stage = Stage(module)
    outputs, results = {}, {}
    for kind, microbatch in ops:
        if kind == "F":
            torch.manual_seed(microbatch)
            outputs[microbatch] = stage.forward(microbatch, inputs_of(module, microbatch))
        elif kind == "W":
            stage.weight_grad(microbatch)
        else:
            generator = torch.Generator().manual_seed(microbatch)
            grads = [torch.randn(y.shape, generator=generator) for y in outputs[microbatch] if y.requires_grad]
            grads = tuple(None if (microbatch, i) in drop else grad for i, grad in enumerate(grads))
            results[microbatch] = (stage.backward if kind == "B" else stage.input_grad)(microbatch, grads)
    assert stage.activation_bytes == 0
    found = [results[microbatch] for microbatch in sorted(results)]
    return [grad for grads in found for grad in grads] + [p.grad for p in module.parameters()]


@pytest.mark.parametrize("first_seed", range(0, 200, 25))
def test_any_order_of_any_graph(first_seed):
    for seed in range(first_seed, first_seed + 25):
        draw = random.Random(seed)
        ops = list(random_order(draw, num_microbatches=3))
        drop = {(mb, i) for mb in range(3) for i in range(3) if draw.random() < 0.1}
        order = [microbatch for kind, microbatch in ops if kind in "BW"]
        whole = [(kind, microbatch) for microbatch in order for kind in "FB"]
        for got, expected in zip(run(seed, ops, drop), run(seed, whole, drop), strict=True):
            assert (got is None) == (expected is None), seed
            assert got is None or torch.equal(got, expected), seed
