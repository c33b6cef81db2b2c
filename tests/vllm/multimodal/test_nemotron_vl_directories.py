"""Directories of TIFF, entry by entry; whole files are in test_nemotron_vl_loading."""

import struct

import pytest

from vllm_nemotron_vl.multimodal.nemotron_vl_directories import Refused, check_tiff

SHORT, LONG, LONG8, SLONG8, IFD8 = 3, 4, 16, 17, 18
STRIPS, SIZES, PLANES, SAMPLES, ROWS = 273, 279, 284, 277, 278
IMAGE = [(256, LONG, 1, 8), (257, LONG, 1, 8), (ROWS, LONG, 1, 8)]
DEFLATE = [(259, SHORT, 1, 8)]


def tiff(entries, big: bool = False, sign: str = "<", data: bytes = b"") -> bytes:
    """A TIFF of one directory; ``data`` follows it, at `end_of(entries, big)`."""
    order = b"II" if sign == "<" else b"MM"
    head = struct.pack(f"{sign}HHHQ", 43, 8, 0, 16) if big else None
    head = head or struct.pack(f"{sign}HI", 42, 8)
    packed = struct.pack(f"{sign}{'Q' if big else 'H'}", len(entries))
    for tag, kind, length, value in entries:
        code = {SHORT: "H", LONG8: "Q"}.get(kind, "I") if length == 1 else "I"
        code = "Q" if big and length > 1 else code
        field = struct.pack(f"{sign}{code}", value).ljust(8 if big else 4, b"\0")
        packed += struct.pack(f"{sign}HH{'Q' if big else 'I'}", tag, kind, length)
        packed += field
    return order + head + packed + bytes(8 if big else 4) + data


def end_of(entries, big: bool) -> int:
    return len(tiff(entries, big))


@pytest.mark.parametrize(("big", "sign"), [(False, "<"), (False, ">"), (True, "<")])
def test_numbers_of_each_size_are_read(big, sign):
    kinds = [SHORT, LONG, LONG8] if big else [SHORT, LONG]
    for kind in kinds:
        check_tiff(tiff([(256, kind, 1, 8), (257, kind, 1, 8)], big, sign))
        with pytest.raises(Refused, match="does not say its size"):
            check_tiff(tiff([(256, kind, 1, 8), (257, kind, 1, 0)], big, sign))


@pytest.mark.parametrize("planes", [1, 2])
def test_each_sample_may_have_a_plane_of_strips(planes):
    entries = [*IMAGE, (SAMPLES, SHORT, 1, 3), (PLANES, SHORT, 1, planes)]
    entries.append((STRIPS, LONG, 3, 0))
    if planes == 2:
        check_tiff(tiff(entries))
    else:
        with pytest.raises(Refused, match="it has 3 strips or tiles for 1"):
            check_tiff(tiff(entries))


@pytest.mark.parametrize(("kind", "code"), [(LONG, "I"), (LONG8, "Q")])
def test_the_bytes_of_all_strips_are_counted(kind, code):
    """In a BigTIFF they may have eight bytes each."""
    rows = [(ROWS, LONG, 1, 1)]
    count, width = 8, struct.calcsize(code)

    def file(size: int) -> bytes:
        entries = [*IMAGE[:2], *rows, *DEFLATE, (STRIPS, kind, count, 0)]
        entries.append((SIZES, kind, count, 0))
        end = end_of(entries, True)
        entries[-2:] = [
            (STRIPS, kind, count, end),
            (SIZES, kind, count, end + count * width),
        ]
        lists = struct.pack(f"<{count}{code}", *[end] * count)
        lists += struct.pack(f"<{count}{code}", *[size] * count)
        return tiff(entries, True, data=lists + bytes(200))

    whole = len(file(1))
    check_tiff(file(whole // 2))
    with pytest.raises(Refused, match=f"have {count * whole} bytes together"):
        check_tiff(file(whole))


BYTES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))


@pytest.mark.parametrize(
    ("kind", "size"), [*BYTES.items(), (LONG8, 8), (SLONG8, 8), (IFD8, 8)]
)
def test_values_count_with_the_bytes_of_their_type(kind, size):
    """The sizes are those of TIFF 6.0 and BigTIFF. The limit is four times the file."""
    count = 800 // size
    many = [(50_000 + n, kind, count, 0) for n in range(8)]
    end = end_of([*IMAGE[:2], *many], True)
    many = [(tag, kind, count, end) for tag, *_ in many]
    whole = tiff([*IMAGE[:2], *many], True, data=bytes(800))
    with pytest.raises(Refused, match=f"name {800 * 8} bytes"):
        check_tiff(whole)
