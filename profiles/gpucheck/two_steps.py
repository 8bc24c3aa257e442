"""Two steps of a small engine on the GPU, over both transports of one process; compute-sanitizer watches them."""

import torch
from torch import nn

import pipert


def main() -> None:
    """Run the steps; the second one has longer microbatches."""
    plan = pipert.compile(pipert.schedules.build("zb-v", num_ranks=2, num_microbatches=3))
    for transport in ("local", "ipc"):
        modules = {stage: nn.Sequential(nn.Linear(32, 32), nn.GELU()).to("cuda") for stage in range(plan.num_stages)}
        with pipert.Engine(plan, modules, nn.functional.mse_loss, transport=transport) as engine:
            for rows in (6, 60):
                batch = torch.randn(rows, 32, device="cuda"), torch.randn(rows, 32, device="cuda")
                loss = engine.step(*batch).loss
                assert loss is not None
                assert loss.isfinite()
    print("ran to its end")


main()
