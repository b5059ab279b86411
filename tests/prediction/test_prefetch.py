"""Work ahead: in order, bounded, alive behind a slow source, gone when left."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cvad_cli.adapters.prefetch import Prefetch, prefetch, ready_batches


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("cvad-load", "cvad-feed"))]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in ours():
        thread.join(5)
    assert not ours()


def uneven(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def test_results_come_in_order_whatever_each_takes() -> None:
    assert list(prefetch(range(50), uneven, ahead=7, workers=4)) == [number * number for number in range(50)]


def test_no_more_than_the_bound_is_begun_ahead_of_the_taker() -> None:
    begun: list[int] = []
    with Prefetch(itertools.count(), lambda number: begun.append(number) or number, ahead=5, workers=2) as loaded:
        for taken in itertools.islice(loaded, 20):
            time.sleep(0.002)
            assert len(begun) <= taken + 1 + 5


def test_what_is_ready_is_not_held_back_by_a_source_that_waits() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go_on.wait(20)
        yield 2

    with Prefetch(source(), uneven) as loaded:
        assert next(loaded) == 1
        assert not loaded.is_ready
        go_on.set()
        assert next(loaded) == 4
        assert list(loaded) == []
        assert list(loaded) == []


def failing(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError("three")
    return number


def broken_source() -> Iterator[int]:
    yield from range(3)
    raise ZeroDivisionError("three")


@pytest.mark.parametrize("items", [range(10), broken_source()], ids=["of the work", "of the source"])
def test_an_error_is_raised_in_order(items) -> None:
    with Prefetch(items, failing, ahead=8) as loaded:
        assert list(itertools.islice(loaded, 3)) == [0, 1, 2]
        with pytest.raises(ZeroDivisionError, match="three"):
            next(loaded)


def test_leaving_early_ends_the_threads_and_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    for number in prefetch(source(), uneven):
        if number:
            break
    assert closed.wait(5)


def test_two_that_feed_one_another_end_together() -> None:
    stop = threading.Event()
    inner = Prefetch(itertools.count(), uneven, stop=stop)
    with Prefetch(inner, uneven, stop=stop, ahead=3) as outer:
        assert list(itertools.islice(outer, 4)) == [0, 1, 16, 81]


def test_the_end_of_the_one_does_not_cut_the_other_short() -> None:
    stop = threading.Event()
    inner = Prefetch(range(40), uneven, stop=stop)
    with Prefetch(inner, uneven, stop=stop, ahead=3) as outer:
        assert list(outer) == [number**4 for number in range(40)]


def test_an_error_passes_through_one_that_feeds_another() -> None:
    stop = threading.Event()
    inner = Prefetch(range(40), failing, stop=stop)
    with Prefetch(inner, uneven, stop=stop) as outer:
        assert list(itertools.islice(outer, 3)) == [0, 1, 4]
        with pytest.raises(ZeroDivisionError, match="three"):
            next(outer)


def test_patient_batches_are_full_and_others_take_what_is_there() -> None:
    with Prefetch(range(11), uneven, ahead=8) as loaded:
        assert [len(batch) for batch in ready_batches(loaded, 4, patient=True)] == [4, 4, 3]

    def slow() -> Iterator[int]:
        for number in range(3):
            yield number
            time.sleep(0.1)

    with Prefetch(slow(), uneven, ahead=8) as loaded:
        assert [len(batch) for batch in ready_batches(loaded, 4, patient=False)] == [1, 1, 1]
    with Prefetch(range(8), lambda number: number, ahead=8) as loaded:
        time.sleep(0.2)
        assert [len(batch) for batch in ready_batches(loaded, 8, patient=False)] == [8]


ABANDONED = """
import gc, threading
from cvad_cli.adapters.prefetch import prefetch

def collect(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "_adjust_thread_count":
        gc.collect()  # the pool holds its locks here

def items():
    yield 0
    abandoned.wait()
    yield from range(1, 9)

gc.disable()
abandoned = threading.Event()
threading.setprofile(collect)
circle = [prefetch(items(), str, ahead=9)]
next(circle[0])
circle.append(circle)
del circle
feeders = [thread for thread in threading.enumerate() if thread.name == "cvad-feed"]
abandoned.set()
for feeder in feeders:
    feeder.join(10)
print(sum(1 for _ in prefetch(range(1000), str)))
"""


def test_an_iterator_that_is_collected_inside_its_own_feeding_thread_blocks_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("1000\n", "")
