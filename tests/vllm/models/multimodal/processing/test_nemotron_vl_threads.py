"""Several threads share the work on an image; the result is that of one thread."""

import contextlib
import math
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from support.noise import noise
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    threads as image_threads,
)

SIZES = [(1700, 2200), (1920, 1080), (641, 479), (512, 512), (9, 7), (2600, 2500)]
RECIPES = ["fast", "exact", "hf"]


@pytest.fixture
def limit():
    """Sets the limit; afterwards it is what it was."""
    before = image_threads.IMAGE_THREADS.limit
    yield image_threads.IMAGE_THREADS.set_limit
    image_threads.IMAGE_THREADS.set_limit(before)


def process(recipe: str, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    features = NemotronVLImageProcessor(512, resize=recipe, do_rescale=False)(image)
    return features["pixel_values_flat"], features["tile_digests"]


def all_equal(found, expected) -> bool:
    return all(map(torch.equal, found, expected))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_number_of_threads_gives_the_same(recipe, size, limit):
    image = noise(*size)
    limit(1)
    expected = process(recipe, image)
    for threads in (2, 3, 7):
        limit(threads)
        assert all_equal(process(recipe, image), expected), threads


@pytest.mark.parametrize("recipe", RECIPES)
def test_callers_at_once_get_the_same(recipe, limit):
    images = [noise(*size) for size in SIZES[:4]] * 2
    limit(1)
    expected = [process(recipe, image) for image in images]
    limit(3)
    with ThreadPoolExecutor(len(images)) as callers:
        found = list(callers.map(lambda image: process(recipe, image), images))
    assert all(map(all_equal, found, expected))


def test_threads_work_at_the_same_time_and_no_more_than_the_limit():
    threads = image_threads.Threads(3)
    together = threading.Barrier(3, timeout=20)
    threads.run([together.wait] * 3)  # would break with fewer threads
    inside, most = set(), []

    def work() -> None:
        inside.add(threading.get_ident())
        most.append(len(inside))
        threading.Event().wait(0.001)
        inside.discard(threading.get_ident())

    threads.run([work] * 200)
    assert len(most) == 200
    assert max(most) <= 3


def test_a_call_does_not_wait_for_threads_that_work_for_another():
    threads = image_threads.Threads(2)
    release, begun = threading.Event(), threading.Barrier(3, timeout=20)

    def hold() -> None:
        begun.wait()
        release.wait(20)

    other = threading.Thread(target=threads.run, args=([hold, hold],))
    other.start()
    begun.wait()  # the other caller and the pool's only thread are held
    try:
        ran_on = []
        threads.run([lambda: ran_on.append(threading.get_ident())] * 20)
        assert ran_on == [threading.get_ident()] * 20
    finally:
        release.set()
        other.join()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_an_error_reaches_the_caller_and_ends_the_work(limit):
    threads = image_threads.Threads(limit)
    done = []

    def fail() -> None:
        raise ZeroDivisionError("a band")

    def work() -> None:
        threading.Event().wait(0.005)  # all of them would take seconds
        done.append(1)

    with pytest.raises(ZeroDivisionError, match="a band"):
        threads.run([fail, *[work] * 1000])
    assert len(done) < 1000
    done.clear()
    threads.run([work] * 5)  # goes on
    assert len(done) == 5


def test_without_another_thread_the_caller_works_alone(monkeypatch):
    """The system may refuse the second of two."""
    starts = [threading.Thread.start]

    def start(thread: threading.Thread) -> None:
        if not starts:
            raise RuntimeError("can't start new thread")
        starts.pop()(thread)

    threads = image_threads.Threads(3)
    ran_on = []
    tasks = [lambda: ran_on.append(threading.get_ident())] * 20
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        threads.run(tasks)
    assert ran_on == [threading.get_ident()] * 20
    together = threading.Barrier(3, timeout=20)
    threads.run([together.wait] * 3)  # now it has them


def test_a_pool_that_has_ended_helps_nobody():
    """As at the end of Python."""
    threads = image_threads.Threads(2)
    threads.run([lambda: None] * 2)
    threads._pool.shutdown()
    ran_on = []
    threads.run([lambda: ran_on.append(threading.get_ident())] * 20)
    assert ran_on == [threading.get_ident()] * 20


def test_a_helper_begins_no_task_after_a_failure(monkeypatch):
    threads = image_threads.Threads(2)
    both, failed = threading.Barrier(2, timeout=20), threading.Event()
    caller, later = threading.get_ident(), []
    wait = image_threads.wait

    def wait_for_helpers(helpers):
        failed.set()
        return wait(helpers)

    def work() -> None:
        both.wait()
        if threading.get_ident() == caller:
            raise ZeroDivisionError
        failed.wait(20)

    monkeypatch.setattr(image_threads, "wait", wait_for_helpers)
    with pytest.raises(ZeroDivisionError):
        threads.run([work, work, *[lambda: later.append(1)] * 20])
    assert failed.is_set() and not later


def test_callers_at_once_start_one_pool(monkeypatch):
    threads = image_threads.Threads(2)
    both, started = threading.Barrier(2), []
    start = image_threads._start_pool

    def start_slowly(number: int):
        started.append(number)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.1)  # for another caller
        return start(number)

    monkeypatch.setattr(image_threads, "_start_pool", start_slowly)
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(threads.run, [[lambda: None] * 2] * 2))
    assert started == [1]


def test_an_error_of_a_helper_reaches_the_caller():
    threads = image_threads.Threads(2)
    both = threading.Barrier(2, timeout=20)
    main = threading.get_ident()

    def fail_elsewhere() -> None:
        both.wait()
        if threading.get_ident() != main:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.run([fail_elsewhere] * 2)


def digest_of_child(image: Image.Image, sender) -> None:
    pixels, _ = process("fast", image)
    sender.send(pixels.numpy().tobytes())


def test_a_forked_process_has_threads_of_its_own(limit):
    limit(3)
    image = noise(1700, 2200)
    expected = process("fast", image)[0].numpy().tobytes()
    assert image_threads.IMAGE_THREADS._pool is not None
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=digest_of_child, args=(image, sender))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == expected
    child.join(20)
    assert child.exitcode == 0


V2, V1 = "0::/a/b", "3:memory:/m\n2:cpu,cpuacct:/a"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (V2, {}, math.inf),
        (V2, {"cpu.max": "max 100000"}, math.inf),
        (V2, {"cpu.max": "250000 100000"}, 2.5),
        (V2, {"a/b/cpu.max": "200000 100000", "a/cpu.max": "max 100000"}, 2),
        (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        (V2, {"c/cpu.max": "200000 100000"}, math.inf),
        ("0::/../../c", {"cpu.max": "200000 100000"}, 2),
        (V2, {"cpu.max": ""}, math.inf),
        (V1, {"a": "-1 100000"}, math.inf),
        (V1, {"a": "50000 100000", "": "-1 100000"}, 0.5),
        (V1, {"m": "50000 100000"}, math.inf),
    ],
    ids=str,
)
def test_quota_of_the_control_group(tmp_path, own, files, cores):
    (tmp_path / "own").write_text(own + "\n")
    for name, text in files.items():
        contents = {name: text}
        if own == V1:
            folder, (quota, period) = f"cpu/{name}", text.split()
            contents = {
                f"{folder}/cpu.cfs_quota_us": quota,
                f"{folder}/cpu.cfs_period_us": period,
            }
        for file, content in contents.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(content + "\n")
    assert image_threads._quota(tmp_path, tmp_path / "own") == cores


@pytest.mark.parametrize(
    ("affinity", "quota", "servers", "share"),
    [
        *((1, math.inf, 1, 1), (16, math.inf, 1, 16), (16, math.inf, 3, 5)),
        *((16, 2.5, 1, 2), (16, 2.5, 4, 1), (4, 0.5, 1, 1), (2, 8, 1, 2)),
        *((4, math.inf, 4, 1), (64, math.inf, 8, 8), (64, 12, 1, 12), (64, 12, 16, 1)),
    ],
)
def test_the_share_of_an_api_server(monkeypatch, affinity, quota, servers, share):
    def cores(process: int) -> set[int]:
        assert process == 0  # this one
        return set(range(affinity))

    monkeypatch.setattr(os, "sched_getaffinity", cores)
    monkeypatch.setattr(image_threads, "_quota", lambda: quota)
    assert image_threads.share_of_cores(servers) == share
