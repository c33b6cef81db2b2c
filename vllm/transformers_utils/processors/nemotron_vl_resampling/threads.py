# SPDX-License-Identifier: Apache-2.0
"""Threads over the parts of one image, of which vLLM processes one at a time.

The compiled loops and the digests release Python's lock, so threads share their work.
There is one pool in a process, with one thread less than the limit: the caller works
too. It never waits for a thread that has not begun with its work, so where all cores
are busy, a call takes what is left to its own thread.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Lock

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")

# Most threads by default: the parts of a page keep no more of them busy.
MOST_THREADS = 8

# Seconds that the threads of the pool have to start.
_START = 5.0

Task = Callable[[], object]


class Threads:
    """A pool that helps its callers with their tasks.

    Args:
        limit: Most threads that work at once for a caller, its own included.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self._renew()
        os.register_at_fork(after_in_child=self._renew)  # which has no threads

    def _renew(self) -> None:
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None

    def set_limit(self, limit: int) -> None:
        """Change the limit. Calls that run go on with the threads that they have."""
        with self._lock:
            pool, self._pool, self.limit = self._pool, None, limit
        if pool is not None:
            pool.shutdown(wait=False)

    def run(self, tasks: Sequence[Task]) -> None:
        """Do all tasks and return when they are done, in any order.

        Tasks may not call it themselves.

        Raises:
            Exception: The first one of a task. Tasks that have not begun are dropped.
        """
        left = deque(tasks)
        helpers = self._call_helpers(left)
        try:
            _work(left)
        finally:
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()

    def _call_helpers(self, left: deque[Task]) -> list[Future]:
        with self._lock:
            number = min(self.limit, len(left)) - 1
            if number > 0 and self._pool is None:
                self._pool = _start_pool(self.limit - 1)
            if number < 1 or self._pool is None:
                return []
            try:
                return [self._pool.submit(_work, left) for _ in range(number)]
            except RuntimeError:  # Python is about to end
                return []


def _start_pool(number: int) -> ThreadPoolExecutor | None:
    """A pool whose threads all run, or none if the system has no more threads."""
    pool = ThreadPoolExecutor(number, "nemotron_vl_image")
    all_run = Barrier(number + 1, timeout=_START)
    try:
        for _ in range(number):
            pool.submit(all_run.wait)
        all_run.wait()
    except (RuntimeError, BrokenBarrierError):
        all_run.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        return None
    return pool


def _work(left: deque[Task]) -> None:
    try:
        while True:
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


def _quota(root: Path = _CGROUP, own: Path = _OWN_CGROUP) -> float:
    """Cores that this process's control groups allow, version 2 or 1, or infinity."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                quotas.append(_quota_of(folder))
    return min(quotas)


def _quota_of(group: Path) -> float:
    try:
        if (file := group / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period)  # "max" is no number
    except (OSError, ValueError):
        return math.inf
    return cores if cores > 0 else math.inf


# Of this process. vLLM makes a processor of images for each request and gives it no
# settings of the engine, so the threads are no part of a processor.
IMAGE_THREADS = Threads()


def set_image_threads(limit: int | None, processes: int) -> None:
    """Set the most threads for one image in this process.

    Args:
        limit: The setting of a user. The default is the share of the cores that one
            process has, at most `MOST_THREADS`.
        processes: How many processes share the cores.
    """
    IMAGE_THREADS.set_limit(limit or min(share_of_cores(processes), MOST_THREADS))
