# SPDX-License-Identifier: Apache-2.0
"""Threads over the parts of one image, of which vLLM processes one at a time.

The compiled loops and the digests release Python's lock, so threads share their work.
There is one pool in a process, with one thread less than the limit: the caller works
too. A caller takes help only while the other callers leave threads of the limit free,
and it never waits for a thread that has not begun with its work. So if all threads have
work of their own, each call runs as with one thread.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock

_CGROUP = Path("/sys/fs/cgroup")

Task = Callable[[], object]


class Threads:
    """A pool for the tasks of several callers.

    Args:
        limit: Most threads that work at once, the caller's included, for one caller.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._renew()
        os.register_at_fork(after_in_child=self._renew)  # which has no threads

    def _renew(self) -> None:
        self._lock = Lock()
        self._callers = 0
        self._pool: ThreadPoolExecutor | None = None

    def set_limit(self, limit: int) -> None:
        """Change the limit. Calls that run go on with the threads that they have."""
        with self._lock:
            pool, self._pool, self.limit = self._pool, None, limit
        if pool is not None:
            pool.shutdown(wait=False)

    def free(self) -> int:
        """Threads that a new caller would have now, its own included."""
        return max(1, self.limit - self._callers)

    def run(self, tasks: Sequence[Task]) -> None:
        """Do all tasks and return when they are done, in any order.

        Tasks may not call it themselves.

        Raises:
            Exception: The first one of a task. Tasks that have not begun are dropped.
        """
        left = deque(tasks)
        helpers = []
        with self._lock:
            wanted = min(self.free(), len(left)) - 1
            self._callers += 1
            if wanted > 0:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.limit - 1, "nemotron_vl_image")
                helpers = [self._pool.submit(self._help, left) for _ in range(wanted)]
        try:
            _work(left)
        finally:
            with self._lock:
                self._callers -= 1
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()

    def _help(self, left: deque[Task]) -> None:
        _work(left, lambda: self._callers < self.limit)


def _work(left: deque[Task], may_go_on: Callable[[], bool] = lambda: True) -> None:
    try:
        while may_go_on():
            try:
                task = left.popleft()
            except IndexError:
                return
            task()
    except BaseException:
        left.clear()
        raise


def share_of_cores(processes: int) -> int:
    """Whole cores for each of some processes, at least one.

    Those that this process may run on are shared, by its affinity and by the quota of
    its control group.
    """
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), _quota()) / processes))


def _quota(root: Path = _CGROUP) -> float:
    """Cores that the control group may use, version 2 or 1, or infinity."""
    try:
        if (file := root / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period)  # "max" is no number
    except (OSError, ValueError):
        return math.inf
    return cores if cores > 0 else math.inf


IMAGE_THREADS = Threads()
