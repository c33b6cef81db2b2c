"""The processes that run the tests fit the machine."""

import gc
import multiprocessing.forkserver
import os
import sys

import psutil
import pytest

from support import workers
from support.forked import preload, run_forked


@pytest.mark.parametrize(
    ("cores", "gigabytes", "number"),
    [(1, 8, 1), (2, 24, 3), (4, 16, 2), (4, 64, 5), (16, 64, 10), (64, 1000, 65)],
)
def test_cores_and_memory_bound_them(cores, gigabytes, number):
    assert workers.workers(cores, gigabytes) == number


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ({}, 65),
        ({"memory.max": "max"}, 65),
        ({"memory.max": "16000000000"}, 2),
        ({"memory/memory.limit_in_bytes": "16000000000"}, 2),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 65),
    ],
)
def test_a_container_has_less_memory_than_its_machine(
    tmp_path, monkeypatch, limits, number
):
    memory = psutil.virtual_memory()._replace(total=512 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(workers.threads, "share_of_cores", lambda processes: 64)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert workers.workers_here(tmp_path) == number


def test_a_quota_bounds_them(tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(total=512 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(workers.threads, "_quota", lambda: 2.5)
    assert workers.workers_here(tmp_path) == 3


def _servers_started() -> None:
    preload()
    print(multiprocessing.forkserver._forkserver._forkserver_pid)


def test_a_fork_does_not_import_vllm_again(tmp_path):
    """It would, in another process to fork from, at a cost of 15 s of a core."""
    printed = run_forked(_servers_started, output=tmp_path / "output.txt")
    assert printed.split()[-1] == "None"


def _inherited() -> None:
    model = "vllm_nemotron_vl.model_executor.models.nemotron_vl"
    gc.unfreeze()  # as vLLM does when an engine ends
    print("numba" in sys.modules, end=" ")
    print(model in sys.modules, gc.get_freeze_count() > 300_000)


def test_a_fork_has_the_model_and_looks_for_no_garbage_in_what_it_got(tmp_path):
    """Each time it looked, it took half a second of a core.

    vLLM cannot start a worker on CPUs in a process that has imported numba.
    """
    printed = run_forked(_inherited, output=tmp_path / "output.txt")
    assert printed.split()[-3:] == ["False", "True", "True"]
