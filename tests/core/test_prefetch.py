"""One item ahead: in order, errors included, and never more."""

import threading

import pytest

from mtl_jax.core.prefetch import ahead, begun

# Nothing here takes this long, unless it would wait for ever.
PATIENCE = 60


def test_items_come_in_their_order():
    assert list(ahead(range(1000))) == list(range(1000))
    assert list(ahead([])) == []


def test_an_error_comes_after_what_was_made_before_it():
    def failing():
        yield 1
        yield 2
        raise ValueError("the third")

    items = ahead(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(items)


def test_the_next_is_made_while_one_is_in_use_and_none_beyond():
    made = [threading.Event() for _ in range(5)]
    threads = set()

    def items():
        for i, event in enumerate(made):
            threads.add(threading.current_thread())
            event.set()
            yield i

    given = ahead(items())
    assert not made[0].is_set()
    assert next(given) == 0
    assert made[1].wait(PATIENCE)
    assert next(given) == 1
    assert made[2].wait(PATIENCE)
    given.close()
    (thread,) = threads
    assert thread is not threading.current_thread()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not made[3].is_set()


def test_an_item_does_not_wait_for_the_next():
    used = threading.Event()

    def items():
        yield "first"
        assert used.wait(PATIENCE)
        yield "second"

    given = ahead(items())
    assert next(given) == "first"
    used.set()
    assert list(given) == ["second"]


def test_whoever_leaves_does_not_wait_for_what_never_comes():
    let_go, threads = threading.Event(), []

    def items():
        threads.append(threading.current_thread())
        yield "first"
        let_go.wait(PATIENCE)

    given = ahead(items())
    assert next(given) == "first"
    given.close()
    assert threads[0].is_alive()
    let_go.set()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


def test_what_is_begun_is_under_way_before_it_is_asked_for():
    there = threading.Event()
    result = begun(lambda: there.set() or 3)
    assert there.wait(PATIENCE)
    assert (result(), result()) == (3, 3)
    with pytest.raises(ZeroDivisionError):
        begun(lambda: 1 // 0)()
