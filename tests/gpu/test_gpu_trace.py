"""The times that the device's events give, beside what the work is known to take and what torch's own events say."""

import struct
import time

import pytest
import torch
from device_driver import DeviceDriver
from torch import nn

import pipert
from pipert import _core
from pipert.engine.device import CudaDevice
from pipert.ops import LaneKind
from pipert.trace import measure

pytestmark = [pytest.mark.gpu, pytest.mark.kernels]

RECORD = struct.Struct("<IIqqq")
SPIN_NS = 400_000
EVENT_NS = 2_000  # how finely the device's events tell the time
WIDTH = 2048


@pytest.fixture
def plan():
    return pipert.compile(pipert.schedules.build("zb-v", num_ranks=2, num_microbatches=4))


@pytest.fixture
def recorded(plan, device):
    """The third step of a plan whose every op holds the device up: its records, and the host's times around it."""
    cuda = CudaDevice(device.index)
    num_spins = {}

    def hold_up():
        num_spins["all"] = num_spins.get("all", 0) + 1
        _core.cuda_spin(cuda.current_stream(), SPIN_NS)

    driver = DeviceDriver(plan, cuda, hold_up, max_words=1 << 18)
    for step in range(3):
        torch.cuda.synchronize()
        num_spins.clear()
        begin_ns = time.monotonic_ns()
        driver.step(step)
        torch.cuda.synchronize()
        end_ns = time.monotonic_ns()
    records = list(RECORD.iter_unpack(driver.executor.trace()))
    uncertainty_ns = driver.executor.clock_uncertainty_ns
    driver.close()
    return records, uncertainty_ns, (begin_ns, end_ns), num_spins["all"]


def test_the_hosts_clock_is_met(recorded):
    records, uncertainty_ns, (begin_ns, end_ns), _ = recorded
    assert 0 < uncertainty_ns < 100_000
    assert min(ready for _, _, ready, _, _ in records) >= begin_ns - uncertainty_ns
    assert max(end for _, _, _, _, end in records) <= end_ns + uncertainty_ns


def test_ops_of_a_lane_follow_each_other_and_their_dependencies(recorded, plan):
    records, *_ = recorded
    assert [op for op, *_ in records] == list(range(plan.num_ops))
    end_of = {op: end for op, *_, end in records}
    last_of_lane = {}
    for op, lane, ready, start, end in records:
        assert ready <= start <= end
        is_receive = plan.lanes[lane].kind is LaneKind.RECV  # has the times of its SEND
        assert start >= last_of_lane.get(lane, start) - EVENT_NS, plan.op_text[op]
        last_of_lane[lane] = end
        for dependency in plan.deps[plan.dep_offsets[op] : plan.dep_offsets[op + 1]]:
            if not is_receive:
                assert start >= end_of[dependency] - EVENT_NS, (plan.op_text[dependency], plan.op_text[op])


def test_ops_take_what_they_are_held_up_for(recorded, plan):
    records, _, (begin_ns, end_ns), num_spins = recorded
    kinds = {lane: plan.lanes[lane].kind for lane in range(len(plan.lanes))}
    compute = [end - start for _, lane, _, start, end in records if kinds[lane] is LaneKind.COMPUTE]
    assert min(compute) >= SPIN_NS - EVENT_NS
    assert num_spins * (SPIN_NS - EVENT_NS) <= sum(compute) <= end_ns - begin_ns


def test_the_sum_is_what_torchs_events_say(device):
    plan = pipert.compile(pipert.schedules.build("zb-h1", num_ranks=2, num_microbatches=4))
    torch.manual_seed(0)
    modules = {
        stage: nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))).to(device, torch.bfloat16)
        for stage in range(plan.num_stages)
    }
    inputs = torch.randn(4 * 4096, WIDTH, device=device, dtype=torch.bfloat16)
    targets = torch.randn(4 * 4096, WIDTH, device=device, dtype=torch.bfloat16)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with pipert.Engine(plan, modules, nn.functional.mse_loss) as engine:
        for _ in range(4):
            for module in modules.values():
                module.zero_grad()
            begin.record()
            result = engine.step(inputs, targets)
            end.record()
            report = measure(result.trace)  # waits for the device, before the next step
        end.synchronize()
    total_ns = begin.elapsed_time(end) * 1e6
    compute_ns = sum(report.compute_times)
    assert 0.5 * total_ns < compute_ns <= 1.01 * total_ns
    assert 0.5 * total_ns < report.makespan <= 1.01 * total_ns
