"""Training with a barrier before the optimizer, and without (post-validation), on data that clips now and then."""

import math
from collections import Counter

import torch
from torch import nn
from where import DEVICE

import pipert
from pipert import schedules

NUM_MICROBATCHES = 4
CLIP_NORM = 10.0
# Of the batches' targets. The gradients' norm is above the clip at some steps, at some of these only that of all ranks
# together, so that the first of them step and have to undo it.
SCALES = (0.3, 30.0, 0.3, 0.3, 60.0, 50.0, 0.2, 40.0)


class Stage(nn.Module):
    """With dropout, so that a step that is run again must draw the same random numbers."""

    def __init__(self, stage):
        super().__init__()
        torch.manual_seed(stage)
        self.linear = nn.Linear(6, 6, dtype=torch.float64 if stage == 1 else torch.float32)
        self.dropout = nn.Dropout(0.2)
        self.num_forwards = 0

    def forward(self, x):
        self.num_forwards += 1
        return self.dropout(torch.tanh(self.linear(x.to(self.linear.weight.dtype)))).float()


def batches(step):
    torch.manual_seed(1000 + step)
    return torch.randn(12, 6), SCALES[step] * torch.randn(12, 6)


def program(name, num_ranks):
    return schedules.build(name, num_ranks=num_ranks, num_microbatches=NUM_MICROBATCHES)


def train(made, *, stages=None, group=None, spoil=None, device=DEVICE):
    """Return the modules, the losses of every step, and how often each stage ran forward."""
    modules = {stage: Stage(stage).to(device) for stage in (range(made.num_stages) if stages is None else stages)}
    optimizer = torch.optim.AdamW([p for module in modules.values() for p in module.parameters()], lr=0.0)
    losses = []
    with pipert.Engine(
        pipert.compile(made),
        modules,
        nn.functional.mse_loss,
        optimizer=optimizer,
        clip_norm=CLIP_NORM,
        process_group=group,
        seed=3,
    ) as engine:
        for step in range(len(SCALES)):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
            inputs, targets = (part.to(device) for part in batches(step))
            if step == spoil:
                first = min(modules)
                hook = modules[first].linear.weight.register_hook(lambda grad: grad * math.nan)
            result = engine.step(inputs, targets)
            if step == spoil:
                hook.remove()
            losses.append(None if result.loss is None else result.loss.item())
    return modules, losses


def reruns(modules):
    """How many steps each stage ran again, at least in part."""
    once = len(SCALES) * NUM_MICROBATCHES
    return Counter({stage: module.num_forwards - once for stage, module in modules.items()})
