"""The search's clock of an order, held to the simulator's of the lowered plan."""

import dataclasses
import random

import pytest
from random_plans import random_costs, random_program

import pipert
from pipert import PlanError
from pipert.activation import peak_activation
from pipert.passes import split_backward
from pipert.solve.orders import search_problem, to_order

UNLIMITED = float("inf")


def random_split_program(rng):
    """Any order of F, I and W: random placement, several paths in some."""
    program = split_backward(random_program(rng))
    rows = [[op for op in ops if op.kind.text in "FIW"] for ops in program.ranks]
    return pipert.Program(program.name, program.paths, program.path_of, tuple(map(tuple, rows)))


def figures(program, costs):
    problem = search_problem(program, costs, [UNLIMITED] * program.num_ranks)
    return problem.figures(to_order(program))


def without_kept(costs):
    """What is kept to the end of the step is taken off the limits, and counts in no peak of the search."""
    return dataclasses.replace(costs, stages=tuple(dataclasses.replace(stage, act_kept=0.0) for stage in costs.stages))


@pytest.mark.parametrize("bandwidth", [False, True])
def test_an_order_takes_as_long_as_its_plan_or_gets_as_stuck(bandwidth):
    rng = random.Random(17)
    outcomes = {"equal": 0, "slower": 0, "stuck": 0}
    for _ in range(400):
        program = random_split_program(rng)
        costs = without_kept(random_costs(rng, program, bandwidth=bandwidth))
        found = figures(program, costs)
        try:
            plan = pipert.compile(program)
        except PlanError:
            assert found is None
            outcomes["stuck"] += 1
            continue
        report = pipert.simulate(plan, costs)
        assert found["peak_activation"] == pytest.approx(peak_activation(program, costs))
        equal = found["rank_spans"] == pytest.approx(report.rank_spans) and found["makespan"] == pytest.approx(
            report.makespan
        )
        outcomes["equal" if equal else "slower"] += 1
        if not equal:  # the plan waits for a slot, which the clock of an order does not know
            assert found["makespan"] <= report.makespan + 1e-9
    assert outcomes["stuck"] > 10
    assert outcomes["slower"] < outcomes["equal"] / 10
