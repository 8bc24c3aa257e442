"""What docs/ shows can be used as it stands."""

import pathlib
import re

import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path in re.findall(r"\]\(([^)h][^)]*)\)", page.read_text()):
        assert (page.parent / path).exists(), path
