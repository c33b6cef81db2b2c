# SPDX-License-Identifier: Apache-2.0
"""Threads that requests take in turn: a large one does not hold up the others."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Turns:
    """A pool of threads, of which each request has half at most.

    A thread that is free does work of the request that has the fewest threads then; of
    several, of the one whose turn was the longest ago.

    Args:
        threads: Size of the pool.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._most = max(1, threads // 2)
        self._lock = threading.Lock()
        self._waiting: dict[object, deque[tuple[Future, Callable[[], Any]]]] = {}
        self._running: Counter[object] = Counter()

    def submit(self, request: object, work: Callable[[], Any]) -> Future:
        """Have work of a request done.

        Cancelling the future does not end work that has begun, which keeps its thread.
        """
        future: Future = Future()
        with self._lock:
            self._waiting.setdefault(request, deque()).append((future, work))
        self._pool.submit(self._work)
        return future

    def _work(self) -> None:
        while (request := self._work_of_one()) is not None:
            with self._lock:
                self._running[request] -= 1
                self._running += Counter()  # drops what is 0

    def _work_of_one(self) -> object | None:
        """Do the next work; ``None`` if the requests that wait have their threads."""
        with self._lock:
            ready = [r for r in self._waiting if self._running[r] < self._most]
            if not ready:
                return None
            request = min(ready, key=self._running.__getitem__)
            works = self._waiting.pop(request)
            future, work = works.popleft()
            if works:
                self._waiting[request] = works  # now the last one
            self._running[request] += 1
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
                del future  # the error's traceback has this frame
        return request
