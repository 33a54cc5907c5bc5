"""Work of the host while the device, or whoever is served, has the one before."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Raised:
    error: BaseException


def begun(action: Callable[[], T]) -> Callable[[], T]:
    """Calls ``action`` in a thread, from now on.

    Returns:
        What waits for its result, and raises what it has raised. Where nobody asks for it, the
        process may end in the midst of it.
    """
    result: futures.Future[T] = futures.Future()

    def work() -> None:
        try:
            result.set_result(action())
        except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
            result.set_exception(error)

    threading.Thread(target=work, name="begun", daemon=True).start()
    return result.result


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in the same order, each made in a thread while the one before is in use.

    An item is given as soon as it is made, and at most one more is made than was asked for.
    What making one raises is raised here in its place. Where this iterator is closed early,
    the thread ends with the item that it is at; nobody waits for it, for it may be reading
    what never comes.

    Args:
        items: Iterated over by that thread alone.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    made: queue.SimpleQueue[T | _Raised] = queue.SimpleQueue()

    source = iter(items)

    def work() -> None:
        while wanted.get():
            try:
                made.put(next(source))
            except BaseException as error:  # noqa: BLE001  (raised where the item is asked for)
                made.put(_Raised(error))
                return

    threading.Thread(target=work, name="ahead", daemon=True).start()
    wanted.put(True)
    try:
        while True:
            item = made.get()
            if isinstance(item, _Raised):
                if isinstance(item.error, StopIteration):
                    return
                raise item.error
            wanted.put(True)
            yield item
    finally:
        wanted.put(False)
