"""How many threads NumPy's and SciPy's linear algebra uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Has linear algebra within use one thread.

    For solvers of many steps on short vectors, such as that of scikit-learn's logistic regression:
    threads wait for each other there longer than they work, the more so on a busy machine.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
