"""What docs/ shows can be used as it stands."""

import pathlib
import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

import pipert
from pipert import Costs, schedules, sources

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_costs_file_is_one(tmp_path):
    [text] = re.findall(r"```toml\n(.*?)```", (DOCS / "simulation.md").read_text(), re.DOTALL)
    (tmp_path / "costs.toml").write_text(text)
    costs = Costs.load(tmp_path / "costs.toml")
    assert costs.transfer(1, 0) == (1.5, 1.2)
    plan = pipert.compile(schedules.build("zb-h1", num_ranks=2, num_microbatches=4))
    assert pipert.simulate(plan, costs).peak_activation[1] > 340e6


def test_the_schedule_is_one(tmp_path):
    [text] = re.findall(r"```python\n(.*?)```", (DOCS / "your-schedule.md").read_text(), re.DOTALL)
    (tmp_path / "my.py").write_text(text)
    source = sources.load(str(tmp_path / "my.py"), ranks=3, microbatches=5)
    assert source.plan().num_stages == 3


def test_a_torch_schedule_is_replaced():
    before, *after = re.findall(r"```python\n(.*?)```", (DOCS / "torch_pipelining.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    module, x, target = torch.nn.Linear(4, 4), torch.randn(8, 4), torch.randn(8, 4)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        outcomes = []
        for code in ([before], after):
            stages = [PipelineStage(module, 0, 1, torch.device("cpu"))]
            names = {"stages": stages, "loss_fn": torch.nn.functional.mse_loss, "x": x, "target": target}
            exec("".join(code[:1]), names)
            losses = []
            output = names["schedule"].step(x, target=target, losses=losses)
            outcomes.append([output, *losses, module.weight.grad, module.bias.grad])
            module.zero_grad()
        assert all(map(torch.equal, *outcomes))
        names |= {"rank": 0, "last_rank": 0}
        exec(after[1].replace("schedule.step(x)", "output = schedule.step(x, target=target, losses=losses)"), names)
        assert len(names["losses"]) == 8
        names["schedule"].close()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path in re.findall(r"\]\(([^)h][^)]*)\)", page.read_text()):
        assert (page.parent / path).exists(), path


def test_the_vocabulary_parallel_layer_runs():
    [text] = re.findall(r"```python\n(.*?)```", (DOCS / "vocab.md").read_text(), re.DOTALL)
    names = {}
    exec(text, names)
    logits = names["x"].detach() @ names["layer"].weight.detach()[:1003].T
    plain = torch.nn.functional.cross_entropy(logits.view(-1, 1003), names["targets"].view(-1))
    torch.testing.assert_close(names["loss"].detach(), plain + 1e-4 * logits.logsumexp(-1).square().mean())
    assert names["layer"].weight.grad is not None
    assert names["x"].grad is not None
