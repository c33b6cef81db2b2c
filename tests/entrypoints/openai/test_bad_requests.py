"""Bad requests get status 4xx and a message, and do not disturb other requests.

Each case is sent to one server together with a good request, whose answer must
be right. The server must answer soon, use little memory and stay up.
"""

import base64
import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError

from support.chat import SERVER_OPTIONS, data_url
from support.hostile import bounded_memory
from vllm_nemotron_vl.assets.nemotron_vl import draw_text
from vllm_nemotron_vl.entrypoints.nemotron_vl.server import serving_process

SECONDS, MEGABYTES = 20, 900
GOOD = "640-27"


class Server(NamedTuple):
    url: str
    pid: int
    media: Path  # the server may read the files below
    pages: str  # URL of an HTTP server that it may fetch from


# Requests


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_part(url: Any) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


READ = text_part("Read the text.")


def chat(*parts, **options) -> dict:
    messages = [{"role": "user", "content": [*parts, READ]}]
    return {"messages": messages, "max_tokens": 12, "temperature": 0, **options}


def file_of(data: bytes, kind: str = "image/png") -> dict:
    return chat(image_part(data_url(data, kind)))


class Case(NamedTuple):
    request: dict | Callable[[Server], dict]
    cause: str  # the message must contain it, in lower case; "|" separates alternatives
    statuses: tuple[int, ...] = (400,)
    path: str = "/v1/chat/completions"


CASES: dict[str, Case] = {}

# Reasons that Pillow gives, in lower case
UNKNOWN_KIND = "cannot be read: failed to load image: cannot identify image file"
TRUNCATED = "truncated"
NO_DATA = "not enough image data"
NO_DECODER = "could not create decoder object"

# Malformed files in the formats that Pillow writes and vLLM opens

SMALL = Image.linear_gradient("L").resize((60, 40))
MODES = {"MSP": "1", "XBM": "1", "BLP": "P", "GIF": "P"}
FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG"),
    *("JPEG2000", "MPO", "MSP", "PCX", "PNG", "PPM", "QOI", "SGI", "SPIDER"),
    *("TGA", "TIFF", "WEBP", "XBM"),
)
REASONS = {
    "half": dict.fromkeys(FORMATS, TRUNCATED)
    | dict.fromkeys(("AVIF", "ICNS", "ICO"), UNKNOWN_KIND)
    | {"DDS": NO_DATA, "QOI": NO_DATA, "WEBP": NO_DECODER},
    "head": dict.fromkeys(FORMATS, UNKNOWN_KIND)
    | dict.fromkeys(("BLP", "BMP", "DIB", "JPEG", "MPO", "PNG"), TRUNCATED)
    | dict.fromkeys(("PPM", "SGI", "TGA"), TRUNCATED)
    | {"DDS": "incomplete header", "JPEG2000": "expected to read 8 bytes"}
    | {"QOI": NO_DATA, "WEBP": NO_DECODER},
    "zeros": dict.fromkeys(FORMATS, UNKNOWN_KIND)
    | {"BMP": "unsupported bmp header", "DIB": "unsupported bmp pixel depth"}
    | {"DDS": "unknown pixel format", "PCX": "unknown pcx mode", "ICO": TRUNCATED}
    | {"PPM": "token too long in file header", "XBM": "invalid literal"},
    "without head": dict.fromkeys(FORMATS, UNKNOWN_KIND),
}
# Pillow reads these without an error and leaves the rest of the image black.
READ_ANYWAY = {("JPEG2000", "half"), ("QOI", "zeros"), ("SGI", "zeros")}

for fmt in FORMATS:
    whole = saved(SMALL.convert(MODES.get(fmt, "RGB")), fmt)
    for damage, data in {
        "half": whole[: len(whole) // 2],
        "head": whole[:24],
        "zeros": whole[:12] + bytes(len(whole) - 12),
        "without head": whole[len(whole) // 2 :],
    }.items():
        if (fmt, damage) not in READ_ANYWAY and not (
            fmt in ("TGA", "XBM") and damage == "without head"
        ):
            kind = f"image/{fmt.lower()}"
            CASES[f"{fmt} {damage}"] = Case(file_of(data, kind), REASONS[damage][fmt])

# Decompression bombs: the header declares 50,000 x 50,000 pixels

SIDE = 50_000


def png_chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def png_bomb(side: int) -> bytes:
    """One bit per pixel; the pixel data compress a thousandfold."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def webp_bomb(side: int) -> bytes:
    """The VP8L header allows at most 16,383 pixels a side."""
    side = min(side, 16_383)
    bits = (side - 1) | (side - 1) << 14
    payload = b"\x2f" + struct.pack("<I", bits) + bytes(32)
    chunk = b"VP8L" + struct.pack("<I", len(payload)) + payload + bytes(1)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def patched(kind: str, at: int, layout: str, **options) -> bytes:
    """A small file whose header, at this offset, declares huge sides."""
    data = bytearray(saved(SMALL.convert("RGB"), kind, **options))
    struct.pack_into(layout, data, at, SIDE, SIDE)
    return bytes(data)


def jpeg_bomb() -> bytes:
    data = bytearray(saved(SMALL.convert("RGB"), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, start, SIDE, SIDE)
    return bytes(data)


def tiff_bomb() -> bytes:
    """An image file directory that declares a width and a height."""
    entries = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, SIDE), (279, 4, 8)]
    packed = b"".join(struct.pack("<HHII", tag, t, 1, v) for tag, t, v in entries)
    directory = struct.pack("<H", len(entries)) + packed + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory


BOMBS = {
    "PNG": png_bomb(SIDE),
    "PNG 900 megapixels": png_bomb(30_000),
    "WEBP": webp_bomb(SIDE),
    "JPEG": jpeg_bomb(),
    "GIF": b"GIF89a" + struct.pack("<HH", SIDE, SIDE) + bytes(3),
    "BMP": patched("BMP", 18, "<ii"),
    "DIB": patched("DIB", 4, "<ii"),
    "DDS": patched("DDS", 12, "<II"),
    "PPM": b"P6 50000 50000 255\n" + bytes(99),
    "TGA": patched("TGA", 12, "<HH"),
    "PCX": patched("PCX", 8, "<HH"),
    "SGI": patched("SGI", 6, ">HH"),
    "QOI": patched("QOI", 4, ">II"),
    "JPEG2000": patched("JPEG2000", 48, ">II"),
    "TIFF": tiff_bomb(),
    "XBM": b"#define x_width 50000\n#define x_height 50000\nstatic char x_bits[] = {",
}
CASES["no picture: a strip"] = Case(
    file_of(saved(Image.new("L", (2_000_000, 1)), "PNG")),
    "2000000x1 pixels; a side may have at most 131072",
)
CASES |= {
    f"bomb {name}": Case(file_of(data), "exceeds limit of 178956970 pixels")
    for name, data in BOMBS.items()
}
CASES["bomb GIF"] = Case(file_of(BOMBS["GIF"]), UNKNOWN_KIND)

# Files that are not images

NO_PICTURES = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"a price tag",
    "HTML": b"<!doctype html><title>404</title>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
    "PDF": saved(SMALL.convert("RGB"), "PDF"),
    "EPS": saved(SMALL.convert("RGB"), "EPS"),
    "PALM": saved(SMALL.convert("1"), "PALM"),
    "ZIP": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "ELF": b"\x7fELF" + bytes(60),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "random": np.random.default_rng(0).bytes(5000),
    "megabytes of nothing": bytes(5_000_000),
}
CASES |= {
    f"no picture: {name}": Case(file_of(data), UNKNOWN_KIND)
    for name, data in NO_PICTURES.items()
}

# Odd data URLs

GOOD_DATA = base64.b64encode(saved(draw_text("1"), "PNG")).decode()
DATA_URLS = {
    "no comma": ("data:image/png;base64", "missing ',' separator"),
    "empty": ("data:image/png;base64,", UNKNOWN_KIND),
    "empty scheme": ("data:", "missing ',' separator"),
    "not base64": ("data:image/png;base64,%%%%", "non-base64 digit"),
    "spaces": (
        "data:image/png;base64," + GOOD_DATA.replace("A", " ", 5),
        "non-base64 digit",
    ),
    "cut": ("data:image/png;base64," + GOOD_DATA[:-5], "non-base64 digit"),
    "no base64": ("data:image/png," + GOOD_DATA[:100], "only base64 data urls"),
    "percent": ("data:image/svg+xml;utf8,%3Csvg%3E%3C/svg%3E", "only base64 data urls"),
    "text": (data_url(b"hello", "text/plain"), UNKNOWN_KIND),
    "audio": (data_url(b"RIFF0000WAVE", "audio/wav"), UNKNOWN_KIND),
    "json": (data_url(b"{}", "application/json"), UNKNOWN_KIND),
}
CASES |= {
    f"data URL: {name}": Case(chat(image_part(url)), reason)
    for name, (url, reason) in DATA_URLS.items()
}

# URLs

SCHEME = "must be either a http, data or file url"
DOMAIN = "must be from one of the allowed domains: ['localhost']"
FOLDER = "must be a subpath of `--allowed-local-media-path"
NOT_FETCHED = "could not be fetched from its url"
URLS = {
    "empty": ("", "is empty"),
    "space": (" ", "failed to parse"),
    "word": ("picture.png", SCHEME),
    "path": ("/etc/passwd", SCHEME),
    "ftp": ("ftp://localhost/picture.png", SCHEME),
    "gopher": ("gopher://localhost/", SCHEME),
    "javascript": ("javascript:alert(1)", SCHEME),
    "blob": ("blob:https://localhost/1", SCHEME),
    "nothing after": ("http://", DOMAIN),
    "bad port": ("http://localhost:99999/picture.png", "failed to parse"),
    "bad host": ("http://[::1/picture.png", "not a valid host or port"),
    "control": ("http://localhost/\x00picture.png", NOT_FETCHED),
    "private": ("http://127.0.0.1:9/picture.png", DOMAIN),
    "any": ("http://0.0.0.0:9/picture.png", DOMAIN),
    "IPv6": ("http://[::1]:9/picture.png", DOMAIN),
    "number": ("http://2130706433:9/picture.png", DOMAIN),
    "octal": ("http://0177.0.0.1:9/picture.png", DOMAIN),
    "network": ("http://10.0.0.1/picture.png", DOMAIN),
    "metadata": ("http://169.254.169.254/latest/meta-data/", DOMAIN),
    "other host": ("https://example.org/picture.png", DOMAIN),
    "user part": ("http://localhost@127.0.0.1:9/picture.png", DOMAIN),
    "backslash": ("http://127.0.0.1:9\\@localhost/picture.png", DOMAIN),
    "suffix": ("http://localhost.example.org/picture.png", DOMAIN),
    "long": ("http://localhost/" + "a" * 100_000, NOT_FETCHED),
    "closed port": ("http://localhost:9/picture.png", NOT_FETCHED),
    "passwd": ("file:///etc/passwd", FOLDER),
    "host": ("file://localhost/etc/passwd", FOLDER),
    "relative": ("file://picture.png", FOLDER),
    "proc": ("file:///proc/self/environ", FOLDER),
    "device": ("file:///dev/zero", FOLDER),
}
CASES |= {
    f"URL: {name}": Case(chat(image_part(url)), reason)
    for name, (url, reason) in URLS.items()
}
FILES = {
    "outside": ("../secret.png", FOLDER),
    "deeper outside": ("folder/../../secret.png", FOLDER),
    "encoded outside": ("%2e%2e/secret.png", FOLDER),
    "link": ("link.png", FOLDER),
    "folder": ("folder", "is a directory"),
    "missing": ("missing.png", "no such file"),
    "text": ("text.png", UNKNOWN_KIND),
}
CASES |= {
    f"file: {name}": Case(
        lambda server, path=path: chat(image_part(f"file://{server.media}/{path}")),
        reason,
    )
    for name, (path, reason) in FILES.items()
}
PAGES = {
    "404": "the url: http 404|fetch",
    "403": "from url: http 403",
    "500": "could not be fetched",
    "redirect": UNKNOWN_KIND,
    "page": UNKNOWN_KIND,
    "endless": "could not be fetched",
    "huge": "exceeds vllm_max_media_download_size_mb=256",
}
CASES |= {
    f"page: {name}": Case(
        lambda server, name=name: chat(image_part(f"{server.pages}/{name}")),
        cause,
        (400, 422),
    )
    for name, cause in PAGES.items()
}

# Messages

PICTURE = image_part("data:image/png;base64," + GOOD_DATA)


def message(content: Any, role: str = "user") -> dict:
    return {"messages": [{"role": role, "content": content}], "max_tokens": 4}


CASES |= {
    "no messages": Case({"messages": []}, "empty conversation"),
    "messages a word": Case({"messages": "hi"}, "should be a valid list"),
    "no role": Case({"messages": [{"content": "hi"}]}, "role"),
    "url None": Case(chat(image_part(None)), "image_url.url"),
    "url a number": Case(chat(image_part(7)), "image_url.url"),
    "url a list": Case(chat(image_part(["a"])), "image_url.url"),
    "image_url a number": Case(
        chat({"type": "image_url", "image_url": 7}), "should be a valid dictionary"
    ),
    "image_url empty": Case(
        chat({"type": "image_url", "image_url": {}}), "image_url.url"
    ),
    "no image_url": Case(chat({"type": "image_url"}), "image_url"),
    "no type": Case(chat({"picture": "x"}), "missing 'type' field"),
    "unknown type": Case(
        chat({"type": "hologram", "hologram": "x"}),
        "unsupported chat content part type: 'hologram'",
    ),
    "PIL over HTTP": Case(
        chat({"type": "image_pil", "image_pil": "x"}),
        "must be a pil image or a uint8 array, not str",
    ),
    "video": Case(
        chat({"type": "video_url", "video_url": {"url": data_url(b"x", "video/mp4")}}),
        "at most 0 video(s)",
    ),
    "audio": Case(
        chat({"type": "audio_url", "audio_url": {"url": data_url(b"x", "audio/wav")}}),
        "at most 0 audio(s)",
    ),
    "input audio": Case(
        chat({"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}}),
        "at most 0 audio(s)",
    ),
    "three pictures": Case(chat(PICTURE, PICTURE, PICTURE), "at most 2 image"),
    "thousand pictures": Case(chat(*[PICTURE] * 1000), "at most 2 image"),
    "one bad of two": Case(
        chat(PICTURE, image_part("data:image/png;base64,")), UNKNOWN_KIND
    ),
    "long text": Case(chat(text_part("9 " * 5000)), "1024"),
    "longer text": Case(chat(text_part("9 " * 500_000)), "1024"),
    "too many tokens": Case(chat(max_tokens=100_000), "1024"),
    "negative tokens": Case(chat(max_tokens=-1), "at least 1, got -1"),
}

# Special tokens typed by users

TYPED = {
    "placeholder": "<image>",
    "two": "<image><image>",
    "thousands": "<image>" * 5000,
    "in brackets": "<img><image></img>",
    "in a header": "<|start_header_id|>user<|end_header_id|><image>",
}
CASES |= {
    f"typed: {name}": Case(chat(text_part(text)), "<image>|1024")
    for name, text in TYPED.items()
}
CASES |= {
    "typed beside a picture": Case(chat(PICTURE, text_part("<image>")), "<image>"),
    "typed by the system": Case(
        {
            "messages": [
                {"role": "system", "content": "You see <image>."},
                {"role": "user", "content": [PICTURE, READ]},
            ]
        },
        "<image>",
    ),
    "typed by the assistant": Case(message("<image>", "assistant"), "<image>"),
    "completion": Case({"prompt": "<image>"}, "<image>", path="/v1/completions"),
    "tokenize": Case(
        {"prompt": "a <image>"}, "1 <image> placeholder(s) for 0", path="/tokenize"
    ),
    "completion ids": Case(
        {"prompt": [10**9]},
        "token id 1000000000 is out of vocabulary",
        path="/v1/completions",
    ),
    "completion of nothing": Case(
        {"prompt": ""}, "must be provided and non-empty", path="/v1/completions"
    ),
}

# Settings

SETTINGS: dict[str, tuple[Any, str]] = {
    "max text": (
        {"max_dynamic_patch": "all"},
        "max_dynamic_patch must be a whole number from 1 to 256, but is 'all'",
    ),
    "max list": (
        {"max_dynamic_patch": [3]},
        "max_dynamic_patch must be a whole number from 1 to 256, but is [3]",
    ),
    "max null": (
        {"max_dynamic_patch": None},
        "max_dynamic_patch must be a whole number from 1 to 256, but is none",
    ),
    "max float": (
        {"max_dynamic_patch": 2.5},
        "max_dynamic_patch must be a whole number from 1 to 256, but is 2.5",
    ),
    "max zero": (
        {"max_dynamic_patch": 0},
        "max_dynamic_patch must be a whole number from 1 to 256, but is 0",
    ),
    "max negative": (
        {"max_dynamic_patch": -3},
        "max_dynamic_patch must be a whole number from 1 to 256, but is -3",
    ),
    "max huge": (
        {"max_dynamic_patch": 10**9},
        "max_dynamic_patch must be a whole number from 1 to 256, but is 1000000000",
    ),
    "min zero": (
        {"min_dynamic_patch": 0},
        "min_dynamic_patch must be a whole number from 1 to 256, but is 0",
    ),
    "min text": (
        {"min_dynamic_patch": "1"},
        "min_dynamic_patch must be a whole number from 1 to 256, but is '1'",
    ),
    "min above max": (
        {"min_dynamic_patch": 9, "max_dynamic_patch": 3},
        "max_dynamic_patch must be a whole number from 9 to 256, but is 3",
    ),
    "dynamic number": (
        {"dynamic_image_size": 3},
        "dynamic_image_size must be true or false, but is 3",
    ),
    "dynamic text": (
        {"dynamic_image_size": "yes"},
        "dynamic_image_size must be true or false, but is 'yes'",
    ),
    "thumbnail text": (
        {"use_thumbnail": "no"},
        "use_thumbnail must be true or false, but is 'no'",
    ),
    "resize unknown": (
        {"resize": "magic"},
        "resize must be one of 'fast', 'exact', 'hf', but is 'magic'",
    ),
    "resize number": (
        {"resize": 3},
        "resize must be one of 'fast', 'exact', 'hf', but is 3",
    ),
    "unknown": (
        {"tiles": 3},
        "unknown mm_processor_kwargs ['tiles']",
    ),
    "size": (
        {"image_size": 32},
        "unknown mm_processor_kwargs ['image_size']",
    ),
    "private": (
        {"__class__": "x"},
        "unknown mm_processor_kwargs ['__class__']",
    ),
    "word": (
        "fast",
        "should be a valid dictionary",
    ),
    "list": (
        [1],
        "should be a valid dictionary",
    ),
}
CASES |= {
    f"setting: {name}": Case(chat(PICTURE, mm_processor_kwargs=settings), reason)
    for name, (settings, reason) in SETTINGS.items()
}

# Embeddings


def embeds_part(tensor: torch.Tensor | bytes) -> dict:
    data = tensor
    if isinstance(tensor, torch.Tensor):
        file = io.BytesIO()
        torch.save(tensor, file)
        data = file.getvalue()
    encoded = base64.b64encode(data).decode()  # type: ignore[arg-type]
    return {"type": "image_embeds", "image_embeds": encoded}


WIDTH = 256
DAMAGED = "the data are damaged"
EMBEDS: dict[str, tuple[torch.Tensor | bytes, str]] = {
    "NaN": (torch.full((4, WIDTH), torch.nan), "must be finite numbers"),
    "infinite": (torch.full((4, WIDTH), torch.inf), "must be finite numbers"),
    "wide": (torch.zeros(4, WIDTH + 1), "got 257, but model expects 256"),
    "narrow": (torch.zeros(4, 1), "got 1, but model expects 256"),
    "rank 1": (torch.zeros(WIDTH), "torch.float32 of shape (1, 256)"),
    "rank 0": (torch.zeros(()), "torch.float32 of shape (1,)"),
    "rank 5": (
        torch.zeros(1, 1, 1, 4, WIDTH),
        "torch.float32 of shape (1, 1, 1, 1, 4, 256)",
    ),
    "empty": (torch.zeros(0, WIDTH), "at least one row"),
    "no width": (torch.zeros(4, 0), "got 0, but model expects 256"),
    "whole numbers": (torch.zeros(4, WIDTH, dtype=torch.int64), "not torch.int64"),
    "complex": (torch.zeros(4, WIDTH, dtype=torch.complex64), "not torch.complex64"),
    "words": (b"hello", DAMAGED),
    "nothing": (b"", DAMAGED),
    "long": (torch.zeros(3000, WIDTH), "1024"),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", DAMAGED),
}
CASES |= {
    f"embeds: {name}": Case(chat(embeds_part(tensor)), reason)
    for name, (tensor, reason) in EMBEDS.items()
}


# Odd requests that are answered, with the answer where it is known


def animated(kind: str) -> dict:
    frames = [draw_text(GOOD), draw_text("111-11")]
    return file_of(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


WHOLE = saved(draw_text(GOOD), "PNG")
ODD: dict[str, tuple[dict, str | None]] = {
    "1x1": (file_of(saved(SMALL.resize((1, 1)), "PNG")), None),
    "100,000x1": (file_of(saved(SMALL.resize((100_000, 1)), "PNG")), None),
    "1x60,000": (file_of(saved(SMALL.resize((1, 60_000)), "PNG")), None),
    "first frame of a GIF": (animated("GIF"), GOOD),
    "first frame of a WebP": (animated("WEBP"), GOOD),
    "first frame of an APNG": (animated("PNG"), GOOD),
    "PNG named JPEG": (file_of(WHOLE, "image/jpeg"), GOOD),
    "PNG named text": (file_of(WHOLE, "text/plain"), GOOD),
    "PNG named SVG": (file_of(WHOLE, "image/svg+xml"), GOOD),
    "bytes after the end": (file_of(WHOLE + b"<script>"), GOOD),
    "picture of the system": (
        {
            "messages": [
                {"role": "system", "content": [PICTURE, text_part("Look.")]},
                {"role": "user", "content": [PICTURE, READ]},
            ]
        },
        None,
    ),
}


# The server


class Pages(http.server.BaseHTTPRequestHandler):
    """A web server whose answer depends on the path; ``asked`` records the paths."""

    asked: list[str] = []

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.asked.append(name)
        status = {"404": 404, "403": 403, "500": 500, "redirect": 302}.get(name, 200)
        self.send_response(status)
        if name == "redirect":
            port = self.server.server_address[1]
            self.send_header("Location", f"http://127.0.0.1:{port}/secret")
        self.end_headers()
        try:
            if name == "endless":
                for _ in range(400):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.25)
            elif name == "huge":
                for _ in range(600):
                    self.wfile.write(bytes(1_000_000))
            elif name == "picture":
                self.wfile.write(saved(draw_text(GOOD), "PNG"))
            else:
                self.wfile.write(b"<title>a page</title>")
        except OSError:
            pass  # the client has disconnected

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad").resolve()
    media = folder / "media"
    (media / "folder").mkdir(parents=True)
    draw_text(GOOD).save(folder / "secret.png")
    draw_text(GOOD).save(media / "good.png")
    (media / "text.png").write_text("no picture")
    (media / "link.png").symlink_to(folder / "secret.png")
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    options = [
        *SERVER_OPTIONS,
        f"--allowed-local-media-path={media}",
        *("--allowed-media-domains", "localhost"),
        "--trust-request-mm-kwargs",
        "--enable-mm-embeds",
    ]
    env = {
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_IMAGE_FETCH_TIMEOUT": "3",
        "VLLM_MEDIA_FETCH_MAX_RETRIES": "1",  # each retry waits four times longer
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # freed memory goes back at once
    }
    log = folder / "log.txt"
    with serving_process(tiny, *options, log=log, env=env) as (process, url):
        address = f"http://localhost:{pages.server_address[1]}"
        yield Server(url, process.pid, media, address)
    pages.shutdown()


def post(server: Server, case: Case) -> httpx.Response:
    body = case.request(server) if callable(case.request) else case.request
    return httpx.post(
        server.url + case.path, json={"model": "tiny", **body}, timeout=2 * SECONDS
    )


def good_answer(server: Server) -> str:
    parts = image_part(f"file://{server.media}/good.png")
    response = post(server, Case(chat(parts), ""))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_there_are_many_cases_and_each_names_its_cause():
    assert len(CASES) >= 150
    assert all(len(case.cause) >= 4 for case in CASES.values())


def test_good_requests_are_answered(server):
    assert good_answer(server) == GOOD
    page = post(server, Case(chat(image_part(f"{server.pages}/picture")), ""))
    assert page.json()["choices"][0]["message"]["content"] == GOOD


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_is_answered(server, name):
    request, expected = ODD[name]
    response = post(server, Case(request, ""))
    assert response.status_code == 200, response.text
    if expected is not None:
        assert response.json()["choices"][0]["message"]["content"] == expected


LARGE = [("RGB", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG")]


@pytest.mark.parametrize(("mode", "kind"), LARGE)
def test_eight_large_images_at_once(server, mode, kind):
    """Within the bound of docs/security.md."""
    count, side = 8, 6000
    data = saved(Image.new(mode, (side, side)), kind)
    request = Case(file_of(data, f"image/{kind.lower()}"), "")
    pixels = side * side
    bound = count * (16 * pixels + 4 * len(data)) + 100e6
    with bounded_memory(bound / 1e6, server.pid), ThreadPoolExecutor(count) as threads:
        found = list(threads.map(lambda _: post(server, request), range(count)))
    assert [response.status_code for response in found] == [200] * count


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_refused(server, name):
    case = CASES[name]
    start = time.monotonic()
    with bounded_memory(MEGABYTES, server.pid), ThreadPoolExecutor(2) as threads:
        good = threads.submit(good_answer, server)
        bad = post(server, case)
        elapsed = time.monotonic() - start
        assert good.result() == GOOD
    assert bad.status_code in case.statuses, bad.text[:500]
    sentence = bad.json()["error"]["message"]
    assert sentence.strip()
    assert any(cause in sentence.lower() for cause in case.cause.split("|")), sentence
    assert "secret" not in Pages.asked
    assert elapsed < SECONDS


# The offline API

PICTURES = [
    name
    for name in CASES
    if name.split()[0] in FORMATS
    or name.startswith(("bomb", "no picture", "data URL", "URL", "typed", "embeds"))
]


@pytest.fixture(scope="module")
def llm(make_llm, tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
        yield make_llm(
            tiny,
            dtype="float32",
            max_model_len=1024,
            limit_mm_per_prompt={"image": 2},
            allowed_local_media_path=str(tmp_path_factory.mktemp("media").resolve()),
            allowed_media_domains=["localhost"],
            enable_mm_embeds=True,
        )


def test_there_are_many_offline_cases():
    assert len(PICTURES) >= 150


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_offline_request_raises_an_error_with_the_cause(llm, name):
    request = CASES[name].request
    assert isinstance(request, dict)
    sampling = SamplingParams(temperature=0, max_tokens=12)
    with pytest.raises((VLLMClientError, ValueError)) as error:
        llm.chat(request["messages"], sampling, use_tqdm=False)
    sentence = str(error.value).lower()
    assert any(cause in sentence for cause in CASES[name].cause.split("|")), sentence
    picture = {"type": "image_pil", "image_pil": draw_text(GOOD)}
    good = [{"role": "user", "content": [picture, READ]}]
    (output,) = llm.chat(good, sampling, use_tqdm=False)
    assert output.outputs[0].text == GOOD


@pytest.mark.parametrize("size", [(20_000, 20_000), (200_000_000, 1)])
def test_offline_images_are_measured_before_they_are_decoded(llm, size):
    bomb = io.BytesIO(png_bomb(30_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # many programs do this
        picture = Image.open(bomb)
        picture.load = lambda: pytest.fail("the image was decoded")  # type: ignore
        picture._size = size
        prompt = {"prompt": "<image>", "multi_modal_data": {"image": picture}}
        with pytest.raises(VLLMClientError, match="VLLM_MAX_IMAGE_PIXELS"):
            llm.generate([prompt], use_tqdm=False)
