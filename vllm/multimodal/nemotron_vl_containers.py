# SPDX-License-Identifier: Apache-2.0
"""Recognises containers of video by their first bytes.

FFmpeg opens many kinds of files. Some of them are texts that name other files or
hosts: ffconcat, HLS, DASH, SDP. A file that begins like a container is none of those
for FFmpeg either: it searches for the words of such a text up to the first zero byte
only, and where two kinds fit equally well it opens neither. An MP4 file may also begin
with 16 MiB of frames, without such a byte; then boxes must follow. Whatever FFmpeg
takes a file for, the process that decodes can open nothing.
"""

from collections.abc import Iterator
from itertools import islice

CONTAINERS = ("MP4", "MOV", "Matroska", "WebM", "AVI")

# Kinds of the first box of an MP4 or MOV file; its size comes before it.
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_DOC_TYPE = b"\x42\x82"
_DOC_TYPES = (b"matroska", b"webm")
_LONGEST_EBML_HEADER = 128
# Boxes at the top of an MP4 or MOV file. What follows another kind is no box.
_BOXES = (*_FIRST_BOXES, b"moof", b"mfra", b"sidx", b"ssix", b"styp", b"uuid", b"udta")
# Files have few elements at the top; a fragmented one has two boxes for each second.
_MOST_ELEMENTS = 10_000


def is_container(data: bytes) -> bool:
    """Whether a file begins like one of `CONTAINERS`."""
    return _is_mp4(data) or _is_avi(data) or _is_matroska(data)


def declared_size(data: bytes) -> int:
    """Bytes that a container needs by its own sizes; 0 if it does not say it.

    A file that has fewer bytes was cut off.
    """
    if _is_mp4(data):
        return _end_of_boxes(data)
    if _is_avi(data):
        written = int.from_bytes(data[4:8], "little")
        return 0 if written in (0, 0xFFFFFFFF) else 8 + written  # as written to a pipe
    for name, start, size in islice(_elements(data), _MOST_ELEMENTS):
        if name == _SEGMENT:
            return 0 if size is None else start + size
    return 0


def _is_mp4(data: bytes) -> bool:
    if data[:1] == b"\0":
        return data[4:8] in _FIRST_BOXES
    # 16 MiB of frames or more; `declared_size` says if they are cut off
    end = int.from_bytes(data[:4])
    cut_off = end > len(data)
    return data[4:8] == b"mdat" and (cut_off or data[end + 4 : end + 8] in _BOXES)


def _is_avi(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:16] == b"AVI LIST"


def _is_matroska(data: bytes) -> bool:
    name, start, size = next(_elements(data), (b"", 0, None))
    if name != _EBML or size is None or size > _LONGEST_EBML_HEADER:
        return False
    header = data[start : start + size]
    types = [
        header[first : first + length].rstrip(b"\0")
        for name, first, length in _elements(header)
        if name == _DOC_TYPE and length is not None
    ]
    return len(types) == 1 and types[0] in _DOC_TYPES


def _end_of_boxes(data: bytes) -> int:
    """Where the last box of an MP4 or MOV file ends."""
    place = 0
    for _ in range(_MOST_ELEMENTS):
        size = int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] not in _BOXES:
            break
        if size == 1:  # the size follows as 64 bits
            size = int.from_bytes(data[place + 8 : place + 16])
        if size < 8:  # up to the end of the file, or no box
            break
        place += size
    return place


def _elements(data: bytes) -> Iterator[tuple[bytes, int, int | None]]:
    """The elements of EBML: id, place of the content, size if it is known."""
    place = 0
    while place + 2 <= len(data):
        length = 9 - data[place].bit_length()
        name = data[place : place + length]
        place += length
        if length > 4 or place >= len(data):
            return
        length = 9 - data[place].bit_length()
        if length > 8:
            return
        size = int.from_bytes(data[place : place + length]) & ~(1 << 7 * length)
        place += length
        if size == (1 << 7 * length) - 1:
            yield name, place, None
            return
        yield name, place, size
        place += size
