"""Requests take threads in turn, and a thread is free when its work is done."""

import threading
from concurrent.futures import wait

import pytest

from vllm_nemotron_vl.multimodal.nemotron_vl_turns import Turns

SECONDS = 60


def test_a_thread_goes_to_each_request_in_turn():
    turns, begin, order = Turns(1), threading.Event(), []
    first = turns.submit("first", lambda: begin.wait(SECONDS))
    futures = [
        turns.submit(name, lambda name=name: order.append(name))
        for name in ("large", "large", "large", "other", "small", "other")
    ]
    begin.set()
    wait([first, *futures], SECONDS)
    assert order == ["large", "other", "small", "large", "other", "large"]


def test_another_request_finds_a_thread():
    turns, end = Turns(4), threading.Event()
    large = [turns.submit("large", lambda: end.wait(SECONDS)) for _ in range(9)]
    assert turns.submit("small", lambda: 7).result(SECONDS) == 7
    assert sum(future.running() for future in large) <= 2
    end.set()
    assert all(future.result(SECONDS) for future in large)


def test_a_client_that_left_has_its_thread_until_the_work_is_done():
    turns, began, end = Turns(2), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        end.wait(SECONDS)

    running = turns.submit("left", work)
    began.wait(SECONDS)
    waiting = turns.submit("left", lambda: pytest.fail("nobody waits for it"))
    assert not running.cancel() and waiting.cancel()
    next_one = turns.submit("left", lambda: 7)
    # With the other thread
    assert turns.submit("other", lambda: 8).result(SECONDS) == 8
    assert not next_one.running()
    end.set()
    assert next_one.result(SECONDS) == 7


def test_errors_arrive_and_do_not_end_the_threads():
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            turns.submit("a", lambda: 1 / 0).result(SECONDS)
    assert turns.submit("a", lambda: 7).result(SECONDS) == 7
    turns._pool.shutdown()  # and wait
    assert not turns._running and not turns._waiting
