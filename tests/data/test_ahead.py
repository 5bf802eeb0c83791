"""A thread that works ahead: how far, in which order, and how it ends. Events decide, never times."""

import threading

import pytest

from hidecmoe_jax.data.ahead import ahead

SECONDS = 30  # a wait that ends by an event; reached only where the code is wrong


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_values_come_in_order_and_at_most_so_many_are_made_before_they_are_asked_for():
    made = []
    begun = threading.Semaphore(0)

    def make(item):
        made.append(item)
        begun.release()
        return item * 10

    values = ahead(make, range(6), depth=2)
    assert next(values) == 0
    # Item 0 was asked for; 1 and 2 are made without being asked for.
    for _ in range(3):
        assert begun.acquire(timeout=SECONDS)
    assert made == [0, 1, 2]
    assert list(values) == [10, 20, 30, 40, 50] and made == list(range(6))
    assert not threads()


def test_the_next_value_is_made_while_the_caller_uses_this_one():
    """The reader of item 1 ends only once item 0 is in use: without a thread this would wait for ever."""
    in_use, made = threading.Event(), threading.Event()

    def make(item):
        if item == 1:
            assert in_use.wait(SECONDS)
            made.set()
        return item

    for item in ahead(make, range(2)):
        if item == 0:
            in_use.set()
            assert made.wait(SECONDS), "item 1 was not begun while item 0 was in use"


def test_an_error_is_raised_in_the_place_of_its_value_and_nothing_new_is_begun():
    made = []

    def make(item):
        made.append(item)
        if item == 2:
            raise OSError("cannot read c.png")
        return item

    values = ahead(make, range(9), depth=1)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(OSError, match=r"c\.png"):
        next(values)
    assert made == [0, 1, 2] and not threads()


def test_closing_waits_for_the_thread_and_begins_nothing_new():
    made = []
    values = ahead(lambda item: made.append(item) or item, range(1000), depth=2)
    next(values)
    values.close()
    assert not threads() and len(made) <= 3


def test_a_depth_of_nothing_works_in_the_callers_thread():
    seen = list(ahead(lambda item: threading.current_thread(), range(3), depth=0))
    assert set(seen) == {threading.main_thread()}
    assert list(ahead(str, [])) == []
