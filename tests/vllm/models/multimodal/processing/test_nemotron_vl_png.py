"""PNG files become Pillow's images, whoever decodes them."""

import errno
import io
import itertools
import random
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import cv2
import numpy as np
import pytest
from numba import njit
from PIL import Image, PngImagePlugin

from support.chat import saved
from support.noise import noise
from support.pngs import (
    ROWS,
    SIZE,
    TEXT,
    Z,
    check,
    chunk,
    decoded,
    file_of,
    rows_of,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    memory,
    png,
    png_filters,
)

SIDES = (1, 2, 3, 15, 17)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    "size", [*itertools.product(SIDES, SIDES), (700, 300)], ids=str
)
def test_all_filters(size, mode):
    rng = random.Random(0)
    starts = range(5)
    for first in starts:  # the row above it is black
        filters = [first, *(rng.randrange(5) for _ in range(size[1] - 1))]
        assert check(file_of(size, mode, zlib.compress(rows_of(size, mode, filters))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", range(5))
def test_bands_go_on_where_the_last_one_ended(kind, mode, monkeypatch):
    size = (61, 83)
    data = file_of(size, mode, zlib.compress(rows_of(size, mode, [kind] * 83)))
    for bytes_of_band in (1, 200, 1000, 5000):
        monkeypatch.setattr(png, "_BAND", bytes_of_band)
        assert check(data)


def test_the_nearest_of_three_levels_is_found_without_their_distances():
    """For all levels, as the specification defines it."""

    @njit
    def first_difference(paeth):
        for left in range(256):
            for up in range(256):
                for corner in range(256):
                    whole = left + up - corner
                    far = abs(whole - left), abs(whole - up), abs(whole - corner)
                    expected = corner
                    if far[0] <= far[1] and far[0] <= far[2]:
                        expected = left
                    elif far[1] <= far[2]:
                        expected = up
                    found = paeth(np.int32(left), np.int32(up), np.int32(corner))
                    if found != expected:
                        return left, up, corner
        return None

    assert first_difference(png_filters.paeth) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(2600, 2500), (131_072, 40), (40, 131_072)], ids=str)
def test_images_that_pillow_stores_in_several_blocks(size, mode):
    assert memory.own_memory(Image.new(mode, size)) is None
    filters = np.arange(size[1]) % 5
    assert check(file_of(size, mode, zlib.compress(rows_of(size, mode, filters), 1)))


def test_pillow_decodes_if_its_blocks_are_too_small_for_a_band(monkeypatch):
    monkeypatch.setattr(png, "own_memory", lambda _: None)
    assert not check(file_of(SIZE, "RGB", Z))


PAGE = noise(200, 150).resize((600, 450))


def by_opencv(image: Image.Image) -> bytes:
    written, data = cv2.imencode(".png", np.asarray(image))
    assert written
    return data.tobytes()


def by_cairo(image: Image.Image) -> bytes:
    cairo = pytest.importorskip("cairocffi", exc_type=OSError)
    pixels = bytearray(image.convert("RGBA").tobytes())
    form = cairo.FORMAT_RGB24 if image.mode == "RGB" else cairo.FORMAT_ARGB32
    return cairo.ImageSurface(form, *image.size, pixels).write_to_png()


ENCODERS = {
    "Pillow": lambda image: saved(image, "PNG"),
    "Pillow, not compressed": lambda image: saved(image, "PNG", compress_level=0),
    "Pillow, optimised": lambda image: saved(image, "PNG", optimize=True),
    "Pillow, runs": lambda image: saved(image, "PNG", compress_type=3),
    "Pillow, fixed codes": lambda image: saved(image, "PNG", compress_type=4),
    "OpenCV": by_opencv,
    "cairo": by_cairo,
}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_files_of_several_encoders(encoder, mode):
    assert check(ENCODERS[encoder](PAGE.convert(mode)))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8192, 65_537])
def test_chunks_of_any_length_also_empty_ones(length):
    rows = rows_of((300, 200), "RGB", np.arange(200) % 5)
    compressed = zlib.compress(rows if length > 9 else rows_of(SIZE, "RGB", [4] * 4))
    parts = [b""]
    for at in range(0, len(compressed), length):
        parts += [compressed[at : at + length], *[b""] * (at % 3)]
    assert check(file_of((300, 200) if length > 9 else SIZE, "RGB", [*parts, b"", b""]))


@pytest.mark.parametrize("seed", range(40))
def test_random_files(seed, monkeypatch):
    rng = random.Random(seed)
    mode = rng.choice(["RGB", "RGBA"])
    size = rng.randint(1, 90), rng.randint(1, 90)
    filters = [rng.choice([0, 1, 2, 3, 4, 4, 4]) for _ in range(size[1])]
    packed = zlib.compressobj(rng.randint(0, 9), wbits=rng.randint(9, 15))
    rows = rows_of(size, mode, filters, seed)
    compressed = packed.compress(rows[: len(rows) // 2])
    compressed += packed.flush(rng.choice([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH]))
    compressed += packed.compress(rows[len(rows) // 2 :]) + packed.flush()
    places = sorted(rng.choices(range(len(compressed)), k=rng.randint(0, 9)))
    pairs = itertools.pairwise([0, *places, len(compressed)])
    monkeypatch.setattr(png, "_BAND", rng.choice([1, 300, 5000, 1 << 18]))
    monkeypatch.setattr(png, "_PIECE", rng.choice([1, 10, 1 << 16]))
    assert check(file_of(size, mode, [compressed[a:b] for a, b in pairs]))


EXIF = Image.Exif()
EXIF[274] = 6
CHUNKS = {
    "transparency": chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)),
    "gamma": chunk(b"gAMA", struct.pack(">I", 100_000)),
    "profile": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"a profile")),
    "Exif": chunk(b"eXIf", EXIF.tobytes()[6:]),
    "text": TEXT,
    "compressed text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1000))),
    "other text": chunk(b"iTXt", b"k\0\0\0\0\0text"),
    "palette": chunk(b"PLTE", bytes(768)),
    "resolution": chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
    "private": chunk(b"prVt", b"something"),
    "wrong sum": TEXT[:-1] + b"x",
}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_around_the_pixels_are_read_by_pillow(name, mode):
    z = zlib.compress(ROWS[mode])
    for data in (
        file_of(SIZE, mode, z, before=CHUNKS[name]),
        file_of(SIZE, mode, z, after=CHUNKS[name]),
        file_of(SIZE, mode, z, after=chunk(b"IDAT", b"more") + CHUNKS[name]),
    ):
        opens = isinstance(decoded(data, lambda *_: False)[1], dict)
        assert check(data) == opens


def interlaced_rows(mode: str) -> bytes:
    """Of the passes that an image of `SIZE` has, in their order."""
    sizes = ((1, 1), (1, 1), (1, 1), (3, 1), (2, 2), (5, 2))
    return b"".join(rows_of(size, mode, [4] * size[1]) for size in sizes)


FRAME = struct.pack(">IIIIIHHBB", 0, *SIZE, 0, 0, 1, 10, 0, 0)
SMALLER = struct.pack(">IIIIIHHBB", 0, 3, 2, 1, 1, 1, 10, 0, 0)
OTHERS = {
    **{mode: saved(PAGE.convert(mode), "PNG") for mode in ("1", "L", "LA", "P")},
    "16-bit grey": saved(Image.new("I;16", SIZE, 999), "PNG"),
    **{
        f"{mode} of 16 bits": file_of(
            *(SIZE, mode, zlib.compress(rows_of(SIZE, 2 * mode, range(4)))), bits=16
        )
        for mode in ROWS
    },
    **{
        f"{mode}, interlaced": file_of(
            *(SIZE, mode, zlib.compress(interlaced_rows(mode))), interlaced=1
        )
        for mode in ROWS
    },
    "animation": saved(
        PAGE, "PNG", save_all=True, append_images=[noise(600, 450)], duration=100
    ),
    "animation of one frame": file_of(
        *(
            SIZE,
            "RGB",
            Z,
            chunk(b"acTL", bytes([0, 0, 0, 1] * 2)) + chunk(b"fcTL", FRAME),
        )
    ),
    "animation after an image": file_of(
        *(SIZE, "RGB", Z, chunk(b"acTL", bytes([0, 0, 0, 1] * 2))),
        after=chunk(b"fcTL", FRAME) + chunk(b"fdAT", bytes([0, 0, 0, 1]) + Z),
    ),
    "frame": file_of(SIZE, "RGB", Z, chunk(b"fcTL", FRAME)),
    "smaller frame": file_of(SIZE, "RGB", Z, chunk(b"fcTL", SMALLER)),
    "no pixels": file_of(SIZE, "RGB", []),
    "JPEG": saved(PAGE, "JPEG"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_left_to_pillow(name):
    assert not check(OTHERS[name])
    if name not in ("frame", "smaller frame", "no pixels"):
        assert isinstance(decoded(OTHERS[name], lambda *_: False)[1], dict)


def test_decoded_images_are_not_decoded_again():
    data = file_of(SIZE, "RGB", Z)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert not png.load(image, data)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "a damaged index"),
        ModuleNotFoundError("a damaged pickle"),
        RuntimeError("LLVM bitcode parsing error"),
    ],
    ids=repr,
)
def test_pillow_decodes_if_the_loops_cannot_be_loaded(error, monkeypatch):
    """numba's cache is damaged, or its disk is full."""

    def fail(*_) -> None:
        raise error

    monkeypatch.setattr(png, "undo", fail)
    text, shown = warning(monkeypatch)
    assert "(%r)" in text
    assert shown is error
    assert not check(file_of(SIZE, "RGB", Z))


def test_pillow_decodes_if_the_pixels_differ(monkeypatch):
    monkeypatch.setattr(png, "undo", lambda *_: True)
    _, shown = warning(monkeypatch)
    assert "other pixels" in str(shown)
    assert not check(file_of(SIZE, "RGB", Z))


def warning(monkeypatch) -> tuple:
    """What the log says of the loops as they are now."""
    fresh, said = png.agrees_with_pillow.__wrapped__, []
    monkeypatch.setattr(png.logger, "warning", lambda *words: said.append(words))
    assert not fresh()
    monkeypatch.setattr(png, "agrees_with_pillow", cache(fresh))
    return said[0]


def test_a_readers_subclass_has_its_own_way(monkeypatch):
    """A plugin of Pillow may register one."""

    class Grey(PngImagePlugin.PngImageFile):
        def load(self):
            super().load()
            self.im.paste((9, 9, 9), (0, 0, *self.size))

    monkeypatch.setitem(Image.OPEN, "PNG", (Grey, PngImagePlugin._accept))
    assert not check(file_of(SIZE, "RGB", Z))


def test_python_s_zlib_does_it_too(monkeypatch):
    """It is there where zlib-ng is not installed."""
    monkeypatch.setattr(png, "zlib", zlib)
    assert check(file_of(SIZE, "RGB", Z))
    assert not check(file_of(SIZE, "RGB", Z[:-1] + b"x"))


def test_nothing_is_compiled_for_a_file():
    assert png.agrees_with_pillow()
    kinds = len(png_filters.undo.signatures)
    for mode, size in itertools.product(ROWS, [SIZE, (1, 1), (2600, 2500)]):
        image = Image.new(mode, size)
        assert check(saved(image, "PNG", compress_level=1))
    assert len(png_filters.undo.signatures) == kinds == 2


def test_the_loop_refuses_arrays_of_wrong_sizes():
    out, above = np.zeros((2, 3, 4), np.uint8), np.zeros(12, np.uint8)
    assert png_filters.undo(np.zeros(20, np.uint8), (0,) * 3, above, out)
    assert not png_filters.undo(np.zeros(19, np.uint8), (0,) * 3, above, out)
    assert not png_filters.undo(np.zeros(20, np.uint8), (0,) * 4, above, out)
    assert not png_filters.undo(np.zeros(20, np.uint8), (0,) * 3, above[:-1], out)


def test_threads_decode_at_the_same_time():
    files = [saved(noise(300, 200, seed), "PNG") for seed in range(4)] * 6
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, files))


def test_other_threads_go_on_meanwhile():
    """Those who wait for Python's lock get it only from whoever releases it."""
    rows, filters = 2000, itertools.cycle(range(5))
    filtered = rows_of((1000, rows), "RGB", itertools.islice(filters, rows))
    compressed = zlib.compress(filtered, 1)
    array, out = np.frombuffer(bytearray(filtered), np.uint8), np.empty((rows, 1000, 4))
    arguments = array, (0,) * 3, np.zeros(4000, np.uint8), out.astype(np.uint8)
    calls = (
        lambda: png_filters.undo(*arguments),
        lambda: png.zlib.decompressobj().decompress(compressed),
    )
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        for call in calls:
            start, calls_left = counted[0], 100
            while counted[0] == start:
                assert calls_left
                calls_left -= 1
                call()
    finally:
        done.set()
        sys.setswitchinterval(before)
        thread.join()


def test_texts_are_there_after_the_pixels():
    data = file_of(SIZE, "RGB", Z, after=TEXT)
    image = Image.open(io.BytesIO(data))
    assert isinstance(image, PngImagePlugin.PngImageFile)
    assert png.load(image, data)
    assert image.text == {"Title": "A page"}
