"""Files that are no videos or odd ones, made when a test asks for them."""

import struct
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from support.chat import saved
from support.clips import encoded, noise, numbers

NO_KIND = "none of mp4, mov, matroska, webm, avi"
NO_VIDEO = "no video that can be decoded"
CUT_OFF = "it is cut off after"


def _half(codec: str, suffix: str) -> bytes:
    data = encoded(noise(12), codec, suffix)
    return data[: len(data) // 2]


def _audio_only() -> bytes:
    """An AVI file with one stream of sound."""
    data, rate = bytes(16000), 8000

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def listed(name: bytes, *chunks: bytes) -> bytes:
        return chunk(b"LIST", name + b"".join(chunks))

    numbers = (0, 0, 0, 0, 2, 2 * rate, 0, len(data), 0, 0, 2, 0, 0, 0, 0)
    stream = struct.pack("<4s4sIHH8I4h", b"auds", bytes(4), *numbers)
    kind = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    header = struct.pack("<14I", 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    body = b"AVI " + listed(
        b"hdrl",
        chunk(b"avih", header),
        listed(b"strl", chunk(b"strh", stream), chunk(b"strf", kind)),
    )
    body += listed(b"movi", chunk(b"00wb", data))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _no_frame_decodes() -> bytes:
    """A Matroska file whose packets hold nothing that FFV1 wrote."""
    data = bytearray(encoded(noise(6)))
    first = data.index(b"\x1fC\xb6u") + 60  # after the head of the first cluster
    last = data.rindex(b"\x1cS\xbbk") if b"\x1cS\xbbk" in data else len(data)
    random = np.random.default_rng(0).integers(0, 256, last - first, np.uint8)
    data[first:last] = bytes(random)
    return bytes(data)


def _huge_frames() -> bytes:
    """An AVI file whose header declares 16,000 x 16,000 pixels."""
    data = bytearray(encoded(noise(3), "HFYU", "avi"))
    struct.pack_into("<ii", data, data.index(b"strf") + 12, 16_000, 16_000)
    return bytes(data)


@cache
def _many_frames() -> bytes:
    """100,000 frames of 2x2 pixels."""
    return encoded(noise(1, 2, 2) * 100_000, "FFV1", "avi", fps=1000)


def ending_ffmpeg() -> bytes:
    """256 bytes that end the process of OpenCV 5.0 with a segmentation fault.

    ``tools/fuzz_videos.py`` has found it: a chunk of an AVI file declares 3 GB.
    """
    head = b"RIFF" + struct.pack("<I", 248) + b"AVI LIST" + bytes(8)
    return (head + b"avih" + struct.pack("<I", 0xCBCB0038)).ljust(256, b"\0")


def _text(text: str) -> Callable[[], bytes]:
    return lambda: text.encode()


FFCONCAT = "ffconcat version 1.0\nfile secret.mkv\n"
M3U8 = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mkv\n#EXT-X-ENDLIST\n"
MPD = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet>'
    '<Representation id="1" mimeType="video/mp4"><BaseURL>secret.mkv</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
# Begin like a container, and go on as a text.
MATROSKA_TEXT = b"\x1aE\xdf\xa3\x9f" + MPD.encode()
MP4_TEXT = b"\0\0\0\x18ftyp" + FFCONCAT.encode()
MDAT_TEXT = b"\1   mdat\n" + MPD.encode().ljust(0x1202020 - 9) + b"\0\0\0\x08moov"
AVI_TEXT = b"RIFF\x20\x20\x20\x20AVI LIST" + MPD.encode()

# Each file with what the refusal says of it
BAD_CLIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "junk": (lambda: np.random.default_rng(0).bytes(5000), NO_KIND),
    "zeros": (lambda: bytes(5000), NO_KIND),
    "a PNG": (lambda: saved(Image.new("RGB", (9, 9)), "PNG"), NO_KIND),
    "an animated GIF": (
        lambda: saved(noise(2)[0], "GIF", save_all=True, append_images=noise(2)),
        NO_KIND,
    ),
    "a JPEG": (lambda: saved(Image.new("RGB", (9, 9)), "JPEG"), NO_KIND),
    "HTML": (_text("<!doctype html><title>404</title>"), NO_KIND),
    "ffconcat": (_text(FFCONCAT), NO_KIND),
    "m3u8": (_text(M3U8), NO_KIND),
    "MPD": (_text(MPD), NO_KIND),
    "SDP": (_text(SDP), NO_KIND),
    "MPD after a head of Matroska": (lambda: MATROSKA_TEXT, NO_KIND),
    "ffconcat after a head of MP4": (lambda: MP4_TEXT, "cannot be read"),
    "MPD in the frames of an MP4": (lambda: MDAT_TEXT, "cannot be read"),
    "MPD after a head of AVI": (lambda: AVI_TEXT, CUT_OFF),
    "sound only": (_audio_only, NO_VIDEO),
    "half an MP4": (lambda: _half("mp4v", "mp4"), CUT_OFF),
    "half an MKV": (lambda: _half("FFV1", "mkv"), CUT_OFF),
    "half a WebM": (lambda: _half("VP80", "webm"), CUT_OFF),
    "half an AVI": (lambda: _half("MJPG", "avi"), CUT_OFF),
    "no frame decodes": (_no_frame_decodes, "cannot be read"),
    "a crash of FFmpeg": (ending_ffmpeg, "ended its decoder"),
    "huge frames": (_huge_frames, "pixels are allowed"),
    "100,000 frames": (_many_frames, "more than 36000 frames"),
}


def _false_count(count: int) -> bytes:
    """An AVI file whose headers give another number of frames."""
    data = bytearray(encoded(noise(6), "HFYU", "avi"))
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, count)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, count)
    return bytes(data)


def _without_count() -> bytes:
    """A Matroska file without a duration, as live recorders write it."""
    data = bytearray(encoded(noise(6)))
    place = data.index(b"D\x89")  # the element Duration becomes one to be skipped
    data[place : place + 2] = b"\x42\x5e"
    return bytes(data)


def _no_rate() -> bytes:
    data = bytearray(encoded(noise(6), "HFYU", "avi"))
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 24, 0)
    return bytes(data)


def _with_frames(*files: bytes) -> bytes:
    """An AVI file of motion JPEG whose frames are these JPEG files, of any sizes."""
    data = bytearray(encoded(noise(len(files)), "MJPG", "avi"))
    place = data.index(b"movi") + 4
    for file in files:
        place = data.index(b"00dc", place)
        (old,) = struct.unpack_from("<I", data, place + 4)
        new = b"00dc" + struct.pack("<I", len(file)) + file + bytes(len(file) % 2)
        data[place : place + 8 + old + old % 2] = new
        place += len(new)
    struct.pack_into("<I", data, data.index(b"movi") - 4, place - data.index(b"movi"))
    del data[place:]  # the index, which would give the old places
    struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


def _frames_first() -> bytes:
    """An MP4 file that begins with 16 MiB of frames, as old recorders write it."""
    data = encoded(noise(6), "mp4v", "mp4")
    place, boxes = 0, {}
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        boxes[data[place + 4 : place + 8]] = place, data[place : place + size]
        place += size
    (start, frames), (_, about) = boxes[b"mdat"], boxes[b"moov"]
    frames = struct.pack(">I", len(frames) + (1 << 24)) + frames[4:] + bytes(1 << 24)
    place = about.index(b"stco")  # the places of the frames in the file
    (count,) = struct.unpack_from(">I", about, place + 8)
    places = struct.unpack_from(f">{count}I", about, place + 12)
    moved = struct.pack(f">{count}I", *(place - start for place in places))
    return frames + about[: place + 12] + moved + about[place + 12 + len(moved) :]


def _jpeg(width: int, height: int) -> bytes:
    return saved(Image.new("RGB", (width, height), "teal"), "JPEG")


def largest() -> bytes:
    """32 frames of the largest size that is allowed."""
    return _with_frames(*[_jpeg(8192, 4320)] * 32)


def slow() -> bytes:
    """A file of 70 MB that takes 20 s to decode."""
    frame = saved(Image.new("L", (8192, 4320)), "JPEG", optimize=True)
    return _with_frames(*[frame] * 500)


# Each file with its frames, if they are known
ODD_CLIPS: dict[str, Callable[[], tuple[bytes, list[Image.Image] | None]]] = {
    "1x1": lambda: (_with_frames(*[_jpeg(1, 1)] * 3), None),
    "too many by the header": lambda: (_false_count(600), noise(6)),
    "too few by the header": lambda: (_false_count(2), noise(6)),
    "a billion by the header": lambda: (_false_count(10**9), noise(6)),
    "no number in the header": lambda: (_without_count(), noise(6)),
    "0 frames a second": lambda: (_no_rate(), noise(6)),
    "another size midway": lambda: (
        _with_frames(_jpeg(90, 70), _jpeg(180, 140), _jpeg(33, 500)),
        None,
    ),
    "16,000 x 16,000 midway": lambda: (
        _with_frames(_jpeg(90, 70), *[_jpeg(16_000, 16_000)] * 8),
        None,
    ),
    "frames first": lambda: (_frames_first(), None),
    "bytes after the end": lambda: (encoded(numbers("7")) + b"<script>", numbers("7")),
    "the largest frames": lambda: (largest(), None),
}
