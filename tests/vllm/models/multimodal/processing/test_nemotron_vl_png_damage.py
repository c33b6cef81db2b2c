"""PNG files that are damaged or hostile: what Pillow says of them stays so."""

import random
import struct
import zlib

import pytest
from PIL import ImageFile

from support.pngs import ROWS, SIZE, TEXT, Z, check, chunk, file_of, rows_of
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png


@pytest.mark.parametrize(
    "after",
    [
        chunk(b"gAMA", b"x"),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 << 20), 9)),
        chunk(b"\xff\xff\xff\xff"),
        chunk(b"fcTL", bytes(26)),
        chunk(b"fdAT", bytes(9)),
        chunk(b"IDAT", bytes(9))[:14],
        struct.pack(">I", 1 << 30) + b"tEXtk",
        b"no chunk",
    ],
    ids=lambda after: repr(after[:14]),
)
def test_damage_after_the_pixels_is_pillows(after):
    check(file_of(SIZE, "RGB", Z, after=after))
    check(file_of(SIZE, "RGB", Z, after=after + TEXT))


def packed(rows: bytes, **options) -> bytes:
    made = zlib.compressobj(**options)
    return made.compress(rows) + made.flush()


RGB = ROWS["RGB"]
IRREGULAR = {
    "a row more": packed(RGB + RGB[:16]),
    "a byte more": packed(RGB + b"\0"),
    "a row less": packed(RGB[:-16]),
    "a byte less": packed(RGB[:-1]),
    "a wrong filter": packed(RGB[:48] + b"\5" + RGB[49:]),
    "a wrong first filter": packed(b"\xff" + RGB[1:]),
    "nothing": b"",
    "only a head": Z[:2],
    "no sum": Z[:-4],
    "half a sum": Z[:-2],
    "a wrong sum": Z[:-1] + bytes([Z[-1] ^ 1]),
    "a bomb": packed(bytes(50_000_000)),
    "a dictionary": packed(RGB, zdict=b"page"),
    "gzip": packed(RGB, wbits=31),
    "no head": packed(RGB, wbits=-15),
    "a window that is too large": b"\x88\x1c" + Z[2:],
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_irregular_is_left_to_pillow(name):
    assert not check(file_of(SIZE, "RGB", IRREGULAR[name]))


# A black pixel, in a block whose codes use all that bits can say, or leave something
# unused. zlib refuses the latter, but other libraries read it.
CODES = {
    "complete": "789c05c081000000000010ffd54000040001",
    "distances": "789c05c001010000008010ff570b0200040001",
    "literals": "789c05c001010000004020ff570b4000040001",
    "lengths of codes": "789c05c001010000000020fcab060800040001",
}


@pytest.mark.parametrize("name", CODES)
def test_incomplete_codes(name):
    data = file_of((1, 1), "RGB", bytes.fromhex(CODES[name]))
    assert check(data) == (name == "complete")


@pytest.mark.parametrize(("kib", "used"), [(0, True), (60, True), (200, False)])
def test_empty_blocks_after_the_rows_are_read_for_a_while(kib, used):
    """Pillow reads none of them, so it is quick however many there are."""
    made = zlib.compressobj()
    compressed = made.compress(RGB) + made.flush(zlib.Z_SYNC_FLUSH)
    empty = b"\0\0\0\xff\xff" * (kib * 1024 // 5)  # stored, of no bytes
    assert check(file_of(SIZE, "RGB", compressed + empty + made.flush())) == used


def test_bytes_after_the_compressed_ones_do_not_matter():
    assert check(file_of(SIZE, "RGB", Z + b"more"))
    assert check(file_of(SIZE, "RGB", [Z, Z]))


def test_a_window_smaller_than_the_distances():
    rows = rows_of((300, 2), "RGB", (0, 0), 1)[:901] * 2
    compressed = zlib.compress(rows, 9)
    check(file_of((300, 2), "RGB", b"\x08\x1d" + compressed[2:]))


def test_no_more_is_inflated_than_the_rows(monkeypatch):
    asked, make = [], png.zlib.decompressobj

    class Counted:
        def __init__(self) -> None:
            self._inflate = make()

        def __getattr__(self, name):
            return getattr(self._inflate, name)

        def decompress(self, piece, most):
            asked.append(most)
            return self._inflate.decompress(piece, most)

    monkeypatch.setattr(png.zlib, "decompressobj", Counted)
    assert not check(file_of(SIZE, "RGB", IRREGULAR["a bomb"]))
    assert asked and 0 < min(asked) <= max(asked) <= len(RGB)


@pytest.mark.parametrize("truncated", [False, True])
def test_a_file_that_is_cut_off_anywhere(truncated, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    data = file_of(SIZE, "RGB", [Z[:9], Z[9:]], before=TEXT, after=TEXT)
    used = sum(check(data[:length]) for length in range(len(data)))
    assert used > 20  # those cut off after the pixels


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_wrong_byte_anywhere(mode, level):
    rng = random.Random(level)
    rows = rows_of((9, 40), mode, [rng.randrange(5) for _ in range(40)])
    rows = bytes(value if rng.random() < 0.3 else 0 for value in rows)
    compressed = zlib.compress(rows, level)
    data = bytearray(file_of((9, 40), mode, [compressed[:50], compressed[50:]]))
    for place in range(len(data)):
        kept = data[place]
        for value in {kept ^ 1 << rng.randrange(8), kept ^ 255, rng.randrange(256)}:
            data[place] = value
            check(bytes(data))
        data[place] = kept
    assert check(bytes(data))
