"""The first bytes of containers, box by box and element by element."""

import pytest

from vllm_nemotron_vl.multimodal.nemotron_vl_containers import (
    declared_size,
    is_container,
)

FTYP = (16).to_bytes(4) + b"ftypisom\0\0\0\0"


def box(name: bytes, content: bytes = b"", large: bool = False) -> bytes:
    if large:
        size = 16 + len(content)
        return (1).to_bytes(4) + name + size.to_bytes(8) + content
    return (8 + len(content)).to_bytes(4) + name + content


def element(name: int, content: bytes, size: int | None = None) -> bytes:
    """With a size of eight bytes; all ones if it is -1."""
    size = len(content) if size is None else size
    written = (1 << 56) - 1 if size < 0 else size
    head = name.to_bytes((name.bit_length() + 7) // 8)
    return head + ((1 << 56) | written).to_bytes(8) + content


def ebml(*types: bytes, room: int = 0) -> bytes:
    kinds = b"".join(element(0x4282, kind) for kind in types)
    return element(0x1A45DFA3, kinds + element(0xEC, bytes(room)) * bool(room))


SEGMENT = 0x18538067


@pytest.mark.parametrize("large", [False, True])
def test_the_boxes_of_mp4_say_where_the_file_ends(large):
    data = FTYP + box(b"moov", bytes(20), large) + box(b"mdat", bytes(300), large)
    assert is_container(data)
    assert declared_size(data) == len(data)
    assert declared_size(data[:-100]) == len(data)
    assert declared_size(data + b"more bytes") == len(data)


def test_a_box_up_to_the_end_has_no_size():
    data = FTYP + (0).to_bytes(4) + b"mdat" + bytes(50)
    assert declared_size(data) == len(FTYP)
    data = FTYP + (7).to_bytes(4) + b"mdat" + bytes(50)
    assert declared_size(data) == len(FTYP)
    empty = FTYP + box(b"free") + box(b"mdat", bytes(9))  # of eight bytes
    assert declared_size(empty) == len(empty)


def test_a_file_may_begin_with_its_frames():
    frames = box(b"mdat", bytes(1 << 24))
    for data, there in (
        (frames + box(b"moov", b"12"), True),
        (frames[:1000], True),
        (frames + b"\0\0\0\x08none", False),
        (frames + b"\0\0\0", False),
    ):
        assert is_container(data) == there


def test_an_avi_says_its_size():
    data = b"RIFF" + (200).to_bytes(4, "little") + b"AVI LIST" + bytes(100)
    assert is_container(data) and declared_size(data) == 208
    for unknown in (0, 0xFFFFFFFF):
        data = b"RIFF" + unknown.to_bytes(4, "little") + b"AVI LIST" + bytes(100)
        assert is_container(data) and declared_size(data) == 0
    assert not is_container(data.replace(b"AVI LIST", b"WAVELIST"))


@pytest.mark.parametrize("kind", [b"webm", b"matroska", b"webm\0\0"])
def test_matroska_says_its_kind_and_size(kind):
    segment = element(SEGMENT, bytes(70))
    data = ebml(kind) + segment
    assert is_container(data)
    assert declared_size(data) == declared_size(data[:-5]) == len(data)
    assert declared_size(ebml(kind) + element(SEGMENT, bytes(9), -1)) == 0
    assert declared_size(ebml(kind) + element(0xEC, bytes(9)) + segment) > len(data)


def test_the_head_of_matroska_has_one_kind_and_is_short():
    tail = element(SEGMENT, bytes(70))
    longest = 128 - len(element(0x4282, b"webm")) - len(element(0xEC, b""))
    assert is_container(ebml(b"webm", room=longest) + tail)
    for head in (
        ebml(),
        ebml(b"webm", b"webm"),
        ebml(b"other"),
        ebml(b"webm", room=longest + 1),
        element(0x1A45DFA3, element(0x4282, b"webm"), -1),
        element(0x1A45DFA4, element(0x4282, b"webm")),
    ):
        assert not is_container(head + tail)
