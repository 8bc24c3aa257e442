"""`pipert bench planner`: each case in a process of its own, its figures brought back whole."""

from pipert.bench import planner
from pipert.bench.figure import Figure


def test_a_case_s_figures_come_back_from_its_process():
    clock_of_plans, clock_of_orders = planner.measure("simulator")
    assert isinstance(clock_of_plans, Figure)
    assert clock_of_plans.ours > 0
    assert clock_of_orders.at_least
    assert set(planner.PARTS) == set(planner.CASES)
