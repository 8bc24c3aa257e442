"""Planning at scale: everything that `pipert bench planner` measures, each case in a process of its own."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

from pipert.bench.figure import Figure, from_fields

_GIB = 1 << 30


def _plan(name: str, num_ranks: int, num_microbatches: int, bar_s: float, bar_gib: float | None = None) -> list[Figure]:
    """Generate, lower, verify and simulate a schedule."""
    import pipert

    start = time.perf_counter()
    program = pipert.schedules.build(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    plan = pipert.compile(program)
    pipert.simulate(plan, pipert.Costs.per_rank())
    seconds = time.perf_counter() - start
    what = f"{name} {num_ranks} x {num_microbatches}"
    setting = f"generate, lower, verify and simulate {plan.num_ops:,} ops"
    return [
        Figure(what, "s", seconds, bar=bar_s, setting=setting),
        Figure(f"{what}, memory", "GiB", _peak_bytes() / _GIB, bar=bar_gib, setting="peak resident memory"),
    ]


def _simulator() -> list[Figure]:
    """Run the clock of plans, as all figures are made, and that of orders, on which the search runs."""
    import pipert
    from pipert import _core
    from pipert.sim import clock_costs
    from pipert.solve.orders import search_problem, to_order

    num_ranks, num_microbatches = 16, 256
    program = pipert.schedules.build("zb-h1", num_ranks=num_ranks, num_microbatches=num_microbatches)
    costs = pipert.Costs.per_rank(F=1.0, I=1.0, W=1.0, p2p=0.1)
    plan = pipert.compile(program)
    native_costs = clock_costs(plan, costs)
    order = to_order(program)
    problem = search_problem(program, costs, [float("inf")] * num_ranks)
    of_plans = plan.num_ops / _least_seconds(lambda: _core.simulate(plan.native, native_costs))
    of_orders = problem.num_ops / _least_seconds(lambda: problem.figures(order))
    setting = f"zb-h1, {num_ranks} ranks, {num_microbatches} microbatches"
    return [
        Figure("simulator", "ops/s", of_plans, bar=2e6, at_least=True, setting=f"{setting}, with transfers"),
        Figure("clock of orders", "ops/s", of_orders, bar=2e6, at_least=True, setting=f"{setting}, compute ops"),
    ]


def _auto() -> list[Figure]:
    """Search with the default effort, for costs of the Zero Bubble paper (arXiv 2401.10241, table 5)."""
    import pipert

    costs = pipert.Costs.per_rank(F=11.307, I=11.254, W=8.101, p2p=0.379, act=1.0, act_w=0.432)
    start = time.perf_counter()
    program = pipert.schedules.build("auto", num_ranks=16, num_microbatches=64, costs=costs, memory_limit=16)
    seconds = time.perf_counter() - start
    bubble = pipert.simulate(pipert.compile(program), costs).bubble_rate_span
    setting = f"a limit of 16 activations a rank; found a bubble of {bubble:.4f} over the longest rank's span"
    return [Figure("auto 16 x 64", "s", seconds, bar=20, setting=setting)]


def _optimal() -> list[Figure]:
    """Solve to proven optimality, from what auto finds."""
    import pipert
    from pipert.solve.optimal import optimal

    if importlib.util.find_spec("ortools") is None:
        print("optimal 8 x 16: skipped, as OR-Tools is not installed (pip install 'pipert[solve]')", file=sys.stderr)
        return []
    costs = pipert.Costs.per_rank()
    hint = pipert.schedules.build("auto", num_ranks=8, num_microbatches=16, num_chunks=1, costs=costs, memory_limit=8)
    start = time.perf_counter()
    solution = optimal(hint, costs, 8, time_limit_s=120)
    seconds = time.perf_counter() - start
    setting = f"F = I = W, a limit of 8 activations a rank; {solution}"
    return [Figure("optimal 8 x 16", "s", seconds if solution.is_optimal else float("inf"), bar=60, setting=setting)]


CASES: dict[str, Callable[[], list[Figure]]] = {
    "zb_v_64_512": lambda: _plan("zb-v", 64, 512, bar_s=10),
    "1f1b_256_1024": lambda: _plan("1f1b", 256, 1024, bar_s=60, bar_gib=6),
    "simulator": _simulator,
    "auto_16_64": _auto,
    "optimal_8_16": _optimal,
}


def measure(case: str) -> list[Figure]:
    """Measure a case in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "pipert.bench.planner", case]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [from_fields(fields) for fields in json.loads(output)]


PARTS: dict[str, Callable[[], list[Figure]]] = {case: functools.partial(measure, case) for case in CASES}


def _least_seconds(call: Callable[[], object]) -> float:
    """Time a call that always does the same: the least of some is the least disturbed."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps([dataclasses.asdict(figure) for figure in CASES[sys.argv[1]]()]))
