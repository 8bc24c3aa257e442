import json
import statistics

import pytest
from test_simulate import plan_of

import pipert
from pipert import ConfigError, Costs
from pipert.noise import Noise, Quantiles, simulate
from pipert.sim import Link

COSTS = Costs.per_rank(F=1, I=1, W=1, p2p=0.1)


def test_no_noise_is_the_plain_step():
    plan = plan_of("zb-h1", 4, 8)
    report, spread = pipert.simulate(plan, COSTS), simulate(plan, COSTS, Noise(), num_steps=3)
    for name in ("makespan", "bubble_rate", "bubble_rate_span"):
        quantiles = getattr(spread, name)
        assert (quantiles.p5, quantiles.p50, quantiles.p95) == pytest.approx((getattr(report, name),) * 3)


def test_a_straggler_is_a_slow_rank():
    plan = plan_of("1f1b", 3, 6)
    spread = simulate(plan, Costs.per_rank(rank_speed=[1, 1, 2]), Noise.parse("straggler=2:4"), num_steps=1)
    slow = pipert.simulate(plan, Costs.per_rank(rank_speed=[1, 1, 0.5]))
    assert spread.makespan.p50 == pytest.approx(slow.makespan)


def test_any_rank_may_be_the_straggler():
    # Ranks of unequal work, so that the makespan tells which of them was slow.
    plan = plan_of("1f1b", 3, 6)
    speed = (1, 0.9, 0.8)
    slowed = [[each / (2 if rank == slow else 1) for rank, each in enumerate(speed)] for slow in range(3)]
    expected = sorted(pipert.simulate(plan, Costs.per_rank(rank_speed=speeds)).makespan for speeds in slowed)
    costs = Costs.per_rank(rank_speed=speed)
    spread = simulate(plan, costs, Noise.parse("straggler=any:2"), num_steps=300)
    assert [spread.makespan.p5, spread.makespan.p50, spread.makespan.p95] == pytest.approx(expected)


def test_factors_have_mean_1_and_the_given_variation():
    # One op in a step, so that a step's makespan is its factor.
    plan = pipert.compile(pipert.schedules.forward_only([(0,)], [0]))
    spread = simulate(plan, Costs.per_rank(F=1), Noise(cv=0.3), num_steps=20000, seed=3)
    assert spread.makespan.mean == pytest.approx(1, abs=0.01)
    log_normal = statistics.NormalDist(-0.5 * 0.0861777, 0.0861777**0.5)  # variance ln(1 + 0.3²)
    for share, value in ((0.05, spread.makespan.p5), (0.5, spread.makespan.p50), (0.95, spread.makespan.p95)):
        assert value == pytest.approx(2.718281828 ** log_normal.inv_cdf(share), rel=0.02)


def test_transfers_vary_too():
    plan = pipert.compile(pipert.schedules.forward_only([(0, 1)], [0]))
    spread = simulate(plan, Costs.per_rank(F=0, links={(0, 1): Link(1)}), Noise(cv=0.3), num_steps=2000)
    assert spread.makespan.p5 < 0.7 < 1.4 < spread.makespan.p95


@pytest.mark.parametrize("cores", [None, 2])
def test_the_seed_decides(cores):
    plan, noise = plan_of("zb-v", 4, 8), Noise(cv=0.1)
    costs = Costs.per_rank(p2p=0.1, host_cores=cores)
    first, again, other = (simulate(plan, costs, noise, num_steps=30, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.makespan != other.makespan
    # A step depends on its own number, not on how many there are.
    done = []
    longer = simulate(plan, costs, noise, num_steps=50, seed=5, progress=done.append)
    assert longer.makespan != first.makespan
    assert sum(done) == 50
    assert simulate(plan, costs, noise, num_steps=1, seed=5).makespan.p50 <= longer.makespan.p95 * 1.5


def test_noise_makes_a_tight_schedule_longer():
    spread = simulate(plan_of("1f1b", 4, 8), COSTS, Noise(cv=0.2), num_steps=100)
    assert spread.makespan.p5 <= spread.makespan.p50 <= spread.makespan.p95
    assert spread.makespan.p50 > pipert.simulate(plan_of("1f1b", 4, 8), COSTS).makespan


def test_quantiles_are_interpolated():
    assert Quantiles.of([3, 1, 2, 5, 4]) == Quantiles(pytest.approx(1.2), 3, pytest.approx(4.8), 3)
    assert Quantiles.of([7]) == Quantiles(7, 7, 7, 7)


def test_text_and_json():
    spread = simulate(plan_of("1f1b", 2, 4), COSTS, Noise.parse("cv=0.1,straggler=1:1.5"), num_steps=10, seed=1)
    figures = json.loads(json.dumps(spread.to_dict()))
    assert figures["makespan"]["p50"] == spread.makespan.p50
    assert figures["noise"] == {"cv": 0.1, "stragglers": [[1, 1.5]], "any_straggler": 1}
    assert str(spread).splitlines()[0].split() == ["10", "noisy", "steps", "p5", "p50", "p95", "mean"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cv=high", "'cv=high' is not cv=NUMBER or straggler=RANK:FACTOR"),
        ("straggler=2", "'straggler=2' is not"),
        ("sigma=2", "'sigma=2' is not"),
        ("cv=1,cv=2", "cv is given more than once"),
        ("straggler=any", "'straggler=any' is not"),
        ("straggler=any:0", "the factor of straggler any must be positive"),
        ("straggler=any:2,straggler=any:2", "straggler is given more than once"),
        ("cv=-1", "cv must be finite and not negative"),
        ("cv=nan", "cv must be finite"),
        ("straggler=1:0", "the factor of straggler 1 must be positive"),
        ("straggler=1:2,straggler=1:3", "straggler twice"),
    ],
)
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        Noise.parse(text)


def test_simulate_names_what_is_wrong():
    plan = plan_of("1f1b", 2, 2)
    with pytest.raises(ConfigError, match="straggler 2 is no rank of 0 to 1"):
        simulate(plan, COSTS, Noise.parse("straggler=2:2"))
    with pytest.raises(ConfigError, match="at least one noisy step, not 0"):
        simulate(plan, COSTS, Noise(), num_steps=0)
