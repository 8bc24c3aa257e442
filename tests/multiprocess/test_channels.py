"""The executor over shared memory: one process per rank."""

import glob
import os
import signal
import time

import pytest
from plan_driver import Driver, Ranks

import pipert
from pipert import _core


def compile_plan(schedule="1f1b", num_ranks=2, num_microbatches=4):
    return pipert.compile(pipert.schedules.build(schedule, num_ranks=num_ranks, num_microbatches=num_microbatches))


def drive(plan, rank, session, **options):
    channels = _core.Channels.shm(plan.native, rank, session, timeout_ms=20_000)
    return Driver(plan, channels, [rank], **options)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-v", "interleaved"])
@pytest.mark.parametrize("spin_us", [0, 50])
def test_steps_with_the_right_bytes(schedule, spin_us):
    plan = compile_plan(schedule, num_ranks=4, num_microbatches=8)
    sizes = [100, 0, 600_000, 70_000]

    def body(rank, session):
        driver = drive(plan, rank, session, nbytes=lambda text, step: sizes[step], spin_us=spin_us)
        for step in range(len(sizes)):
            driver.step(step)
        texts = [text for text, _ in driver.calls]
        driver.close()
        return texts == [plan.op_text[row] for row in driver.rows]

    assert Ranks(4, body).results() == [True] * 4


def test_a_killed_rank_is_named_by_all_others():
    plan = compile_plan(num_ranks=3)

    def body(rank, session):
        driver = drive(plan, rank, session)
        driver.step(0)
        if rank == 1:
            driver.before["1F2"] = lambda: os.kill(os.getpid(), signal.SIGKILL)
        begin = time.monotonic()
        try:
            driver.step(1)
        except pipert.PeerLost as lost:
            return str(lost), lost.rank, lost.op, lost.step, time.monotonic() - begin

    first, killed, last = Ranks(3, body).results()
    assert killed is None
    for rank, (text, culprit, op, step, seconds) in ((0, first), (2, last)):
        assert culprit == 1
        assert step == 1
        assert plan.rank_of(plan.op_text.index(op)) == rank
        assert "rank 1 died" in text
        assert op in text
        assert seconds < 5
    assert last[2] == "2RECV_F2"  # rank 2 waits for exactly what rank 1 did not send any more


def test_a_death_is_noticed_although_a_forked_child_keeps_the_connections_open():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session)
        driver.step(0)
        if rank == 1:
            child = os.fork()
            if child == 0:
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(pipert.PeerLost, match="rank 1 died") as lost:
            driver.step(1)
        return lost.value.op, time.monotonic() - begin < 4

    ranks = Ranks(2, body)
    ranks.close_pipe(1)  # the child keeps it open, too
    first, _ = ranks.results()
    op, in_time = first
    assert op.startswith("0")
    assert in_time


def test_a_forked_child_can_drop_what_it_inherited():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session)
        driver.step(0)
        child = os.fork()
        if child == 0:
            driver.close()
            os._exit(0)
        driver.step(1)
        _, status = os.waitpid(child, 0)
        driver.step(2)
        driver.close()
        return status

    assert Ranks(2, body).results() == [0, 0]


def test_a_handlers_exception_reaches_the_peers_as_text():
    plan = compile_plan(num_ranks=3)

    def fail():
        raise ValueError("boom")

    def body(rank, session):
        driver = drive(plan, rank, session)
        if rank == 2:
            driver.before["2F1"] = fail
        driver.step(7)

    first, second, last = Ranks(3, body).results()
    assert type(last) is ValueError
    for error in (first, second):
        assert type(error) is pipert.PeerLost
        assert "rank 2 failed at 2F1: ValueError: boom" in str(error)
        assert (error.rank, error.step) == (2, 7)


def test_any_text_of_an_exception_reaches_the_peers():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session)
        if rank == 1:

            def fail():
                raise ValueError("\u00e9" * 10_000)

            driver.before["1F0"] = fail
        with pytest.raises(ValueError if rank == 1 else pipert.PeerLost, match="\u00e9\u00e9\u00e9"):
            driver.step(0)

    assert Ranks(2, body).results() == [None, None]


def test_a_rank_that_leaves_early_is_lost():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session)
        driver.step(0)
        if rank == 0:
            driver.step(1)
        driver.close()

    first, second = Ranks(2, body).results()
    assert second is None
    assert type(first) is pipert.PeerLost
    assert "rank 1 left before it" in str(first)


def test_a_rank_that_is_too_slow_is_a_timeout_there_and_a_loss_elsewhere():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session, timeout_ms=300)
        if rank == 1:
            driver.before["1F1"] = lambda: time.sleep(1.5)
        driver.step(0)

    first, second = Ranks(2, body).results()
    assert type(first) is pipert.LaneTimeout
    assert first.op == "0RECV_B1"
    assert "waited 300 ms for 0RECV_B1" in str(first)
    assert type(second) is pipert.PeerLost
    assert "waited 300 ms for 0RECV_B1" in str(second)


def test_ctrl_c_ends_a_wait():
    plan = compile_plan()

    def body(rank, session):
        driver = drive(plan, rank, session)
        if rank == 1:
            driver.before["1F1"] = lambda: (os.kill(os.getppid(), signal.SIGUSR1), time.sleep(30))
        driver.step(0)

    waiting = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: waiting.append(True))
    try:
        ranks = Ranks(2, body)
        while not waiting:
            time.sleep(0.01)
        os.kill(ranks.pid(0), signal.SIGINT)
        time.sleep(0.3)
        os.kill(ranks.pid(1), signal.SIGINT)
        first, second = ranks.results()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert type(first) is KeyboardInterrupt
    assert type(second) is KeyboardInterrupt


def test_different_plans_are_refused():
    plans = [compile_plan(num_microbatches=4), compile_plan(num_microbatches=5)]

    def body(rank, session):
        _core.Channels.shm(plans[rank].native, rank, session, timeout_ms=5_000)

    for error in Ranks(2, body).results():
        assert type(error) is pipert.TransportError
        assert "ranks 0 and 1 were given different plans" in str(error) or "ranks 1 and 0" in str(error)


def test_a_missing_rank_is_named():
    plan = compile_plan(num_ranks=3)

    def body(rank, session):
        if rank != 1:
            _core.Channels.shm(plan.native, rank, session, timeout_ms=500)

    first, _, last = Ranks(3, body).results()
    assert type(first) is pipert.TransportError
    assert "was not called in time by rank(s) 1" in str(first)
    assert type(last) is pipert.TransportError
    assert last.rank == 1 or last.rank == 0


def test_a_rank_taken_twice_is_refused():
    plan = compile_plan()

    def body(rank, session):
        _core.Channels.shm(plan.native, 0, session, timeout_ms=500)

    errors = Ranks(2, body).results()
    assert all(type(error) is pipert.TransportError for error in errors)
    assert any("does another process run as the same rank" in str(error) for error in errors)


def test_wrong_arguments_are_refused():
    plan = compile_plan()
    with pytest.raises(pipert.ConfigError, match="rank 2 of a plan for 2 ranks"):
        _core.Channels.shm(plan.native, 2, "session", timeout_ms=100)
    with pytest.raises(pipert.ConfigError, match="session"):
        _core.Channels.shm(plan.native, 0, "", timeout_ms=100)


def test_nothing_is_left_behind():
    plan = compile_plan()
    before = set(glob.glob("/dev/shm/*")) | set(glob.glob("/tmp/*pipert*"))

    def body(rank, session):
        driver = drive(plan, rank, session, nbytes=lambda text, step: 100_000)
        driver.step(0)
        seen = set(glob.glob("/dev/shm/*")) | set(glob.glob("/tmp/*pipert*"))
        os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else time.sleep(0.1)
        return seen == before

    assert Ranks(2, body).results() == [None, True]


def test_the_channel_benchmark_measures_every_round_trip():
    def body(rank, session):
        return _core.channel_benchmark(session, rank, nbytes=4096, iterations=50, spin_us=0)

    for seconds in Ranks(2, body).results():
        assert len(seconds) == 50
        assert all(0 < second < 5 for second in seconds)
