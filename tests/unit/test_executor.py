"""The executor with all ranks in this process."""

import gc
import signal
import struct
import threading
import time
import weakref

import pytest
from plan_driver import Driver

import pipert
from pipert import _core


def make(schedule="1f1b", num_ranks=3, num_microbatches=4, **options):
    plan = pipert.compile(pipert.schedules.build(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches))
    return Driver(plan, _core.Channels.local(plan.native), range(num_ranks), **options)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"])
def test_every_op_runs_once_in_the_global_order_with_the_right_bytes(schedule):
    driver = make(schedule, num_ranks=4, num_microbatches=8)
    for step in range(3):
        driver.step(step)
        assert [text for text, _ in driver.calls] == [driver.plan.op_text[row] for row in driver.rows]
        assert all(str(driver.plan.ops[driver.row(text)].microbatch) == str(mb) for text, mb in driver.calls)


def test_messages_of_any_size_grow_their_slots():
    sizes = {0: 0, 1: 1, 2: 5_000, 3: 3_000_000, 4: 70_000, 5: 0}
    driver = make(nbytes=lambda text, step: sizes[step])
    for step in sizes:
        driver.step(step)


def test_a_view_of_a_slot_outlives_its_growth_and_the_executor():
    sizes = {0: 1_000, 1: 4_000_000}
    driver = make(nbytes=lambda text, step: sizes[step])
    driver.step(0)
    views = [driver.executor.slot_memory(row) for row, text in enumerate(driver.plan.op_text) if "RECV" in text]
    driver.step(1)
    before = [bytes(view) for view in views]
    driver.executor.close()
    del driver
    gc.collect()
    assert [bytes(view) for view in views] == before


def test_post_counts_the_finished_sends_of_its_lane():
    driver = make(num_ranks=2, num_microbatches=3)
    driver.step(0)
    assert driver.finished_sends["0SEND_F0"] == 0
    driver.step(1)
    assert driver.finished_sends["0SEND_F0"] == 3


def test_the_trace_has_a_record_for_each_op():
    driver = make("zb-h1")
    begin = time.monotonic_ns()
    driver.step(0)
    end = time.monotonic_ns()
    records = list(struct.iter_unpack("<IIqqq", driver.executor.trace()))
    assert [record[0] for record in records] == list(range(driver.plan.num_ops))
    assert [record[1] for record in records] == list(driver.plan.op_lane)
    for op, _, ready, start, finish in records:
        assert begin <= ready <= start <= finish <= end, driver.plan.op_text[op]
    finished = {record[0]: record[4] for record in records}
    for op, _, _, start, _ in records:
        for dep in driver.plan.deps[driver.plan.dep_offsets[op] : driver.plan.dep_offsets[op + 1]]:
            assert finished[dep] <= start, (driver.plan.op_text[dep], driver.plan.op_text[op])


def test_a_handlers_exception_comes_through_and_ends_the_executor():
    driver = make()
    boom = ValueError("boom")

    def fail():
        raise boom

    driver.before["1F1"] = fail
    with pytest.raises(ValueError, match="boom") as caught:
        driver.step(0)
    assert caught.value is boom
    with pytest.raises(
        pipert.PipertError, match=r"no step can follow a failure: rank 1 failed at 1F1: ValueError: boom"
    ):
        driver.step(1)
    assert "failed: rank 1 failed at 1F1" in driver.executor.status()
    driver.executor.close()


def test_abort_from_another_thread_ends_the_step():
    driver = make()
    entered, go = threading.Event(), threading.Event()

    def hold():
        entered.set()
        go.wait(10)

    driver.before["1F0"] = hold

    def abort():
        entered.wait(10)
        assert "runs 1F0" in driver.executor.status()
        driver.executor.abort("enough")
        go.set()

    thread = threading.Thread(target=abort)
    thread.start()
    with pytest.raises(pipert.PipertError, match="was aborted: enough") as caught:
        driver.step(5)
    thread.join()
    assert caught.value.step == 5


def test_a_handler_that_posts_nothing_is_named():
    driver = make()
    driver.silent.add("0SEND_F1")
    with pytest.raises(pipert.PipertError, match="0SEND_F1 of rank 0 posted nothing") as caught:
        driver.step(0)
    assert caught.value.op == "0SEND_F1"


def test_calls_in_the_wrong_order_are_refused():
    driver = make()
    plan, executor = driver.plan, driver.executor
    send, recv, compute = driver.row("0SEND_F0"), driver.row("1RECV_F0"), driver.row("0F0")
    with pytest.raises(pipert.ConfigError, match="0SEND_F0 is posted by nobody"):
        executor.post(send, [], b"")
    with pytest.raises(pipert.ConfigError, match="0F0 is not a SEND"):
        executor.post(compute, [], b"")
    with pytest.raises(pipert.ConfigError, match="op 9999 does not exist"):
        executor.post(9999, [], b"")
    with pytest.raises(pipert.ConfigError, match="0SEND_F0 is not a RECV"):
        executor.received(send)
    with pytest.raises(pipert.ConfigError, match="op -1 does not exist"):
        executor.slot_memory(-1)
    with pytest.raises(pipert.ConfigError, match="1RECV_F0 has not received"):
        executor.received(recv)
    with pytest.raises(pipert.ConfigError, match=f"each of the {len(driver.rows)} compute and collective ops, got 1"):
        executor.bind([print])
    with pytest.raises(pipert.ConfigError, match="cannot be called"):
        executor.bind([3] * len(driver.rows))
    channels = _core.Channels.local(plan.native)
    first = _core.Executor(plan.native, channels, [0, 1, 2], spin_us=0, timeout_ms=1000)
    with pytest.raises(pipert.ConfigError, match="another executor uses"):
        _core.Executor(plan.native, channels, [0, 1, 2], spin_us=0, timeout_ms=1000)
    first.close()
    with pytest.raises(pipert.ConfigError, match="before bind"):
        _core.Executor(plan.native, channels, [0, 1, 2], spin_us=0, timeout_ms=1000).step(0)
    for ranks in ([0, 1], [0, 1, 3], [0, 0, 1, 2], [0, 1, 2, 3]):
        with pytest.raises(pipert.ConfigError, match="rank"):
            _core.Executor(plan.native, channels, ranks, spin_us=0, timeout_ms=1000)
    executor.close()
    executor.close()
    with pytest.raises(pipert.ConfigError, match="closed"):
        executor.step(0)
    assert executor.status() == "closed\n"


def test_calls_from_within_a_handler_are_refused():
    driver = make()
    executor = driver.executor
    refused = []

    def misuse():
        for call in (
            lambda: executor.step(1),
            lambda: executor.bind([]),
            lambda: executor.trace(),
            lambda: executor.post(driver.row("1SEND_B0"), [], b""),
            lambda: executor.post(driver.row("1SEND_F0"), [], b"x" * 4097),
            lambda: executor.post(driver.row("1SEND_F0"), [(0, 8)], b""),
            lambda: executor.received(driver.row("1RECV_F1")),
        ):
            with pytest.raises(pipert.ConfigError):
                call()
            refused.append(call)

    def post_again():
        with pytest.raises(pipert.ConfigError, match="posted twice"):
            executor.post(driver.row("1SEND_F0"), [], b"")

    driver.before["1F0"] = misuse
    driver.before["1F1"] = lambda: None
    driver.step(0)
    assert len(refused) == 7

    original = driver._post

    def twice(send):
        original(send)
        if driver.plan.op_text[send] == "1SEND_F0":
            post_again()

    driver._post = twice
    driver.before.clear()
    driver.step(1)


def test_segments_of_the_wrong_form_are_type_errors():
    driver = make()
    send = driver.row("0SEND_F0")
    for segments in ([1], [(1,)], [("a", 1)], 3):
        with pytest.raises(TypeError):
            driver.executor.post(send, segments, b"")
    with pytest.raises(OverflowError):
        driver.executor.post(send, [(-1, 5)], b"")


def test_handlers_that_refer_back_are_collected():
    driver = make()
    alive = weakref.ref(driver)
    driver.step(0)  # the handlers hold the driver, which holds the executor, which holds the handlers
    del driver
    gc.collect()
    assert alive() is None


def test_a_signal_in_a_handler_ends_the_step():
    driver = make()
    driver.before["1F0"] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        driver.step(0)
    with pytest.raises(pipert.PipertError, match="KeyboardInterrupt"):
        driver.step(1)


def test_closing_the_channels_ends_the_executor():
    driver = make()
    driver.step(0)
    driver.channels.close()
    with pytest.raises(pipert.PipertError, match="the channels were closed"):
        driver.step(1)
    with pytest.raises(pipert.ConfigError, match="closed or have failed"):
        _core.Executor(driver.plan.native, driver.channels, [0, 1, 2], spin_us=0, timeout_ms=1000)


@pytest.mark.parametrize(("spin_us", "timeout_ms"), [(-1, 1000), (0, 0), (0, -5)])
def test_times_out_of_range_are_refused(spin_us, timeout_ms):
    with pytest.raises(pipert.ConfigError, match="must"):
        make(spin_us=spin_us, timeout_ms=timeout_ms)


def test_status_tells_where_every_lane_stands():
    driver = make(num_ranks=2, num_microbatches=2)
    assert driver.executor.status().startswith("no step yet")
    seen = []
    driver.before["1F1"] = lambda: seen.append(driver.executor.status())
    driver.step(4)
    assert "step 4\n" in seen[0]
    assert "rank 1 compute: 2 of 4 ops finished, runs 1F1" in seen[0]
    assert "rank 1 receive from 0: 2 of 2 ops finished" in seen[0]
    assert "rank 1 send to 0: 2 of 2 ops finished" in driver.executor.status()
