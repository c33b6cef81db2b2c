"""Bad requests and what the message of each refusal contains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from support.bad_files import BAD_FILES, OTHER_KIND
from support.bad_tensors import compressed, repeated, slow_pickle
from support.bad_urls import DATA_URLS, FILES, GOOD_DATA, PAGES, URLS
from support.chat import data_url, embeds_part, image_part, text_part
from support.tiny import WIDTH


class Server(NamedTuple):
    url: str
    pid: int
    media: Path  # the server may read the files below
    pages: str  # URL of an HTTP server that it may fetch from


READ = text_part("Read the text.")


def chat(*parts, **options) -> dict:
    messages = [{"role": "user", "content": [*parts, READ]}]
    return {"messages": messages, "max_tokens": 12, "temperature": 0, **options}


def file_of(data: bytes, kind: str = "image/png") -> dict:
    return chat(image_part(data_url(data, kind)))


def of_other_type(key: str, *parts) -> dict:
    request = chat(*parts)
    request["messages"][0][key] = OTHER_TYPE[key]
    return request


class Case(NamedTuple):
    request: dict | Callable[[Server], dict]
    cause: str  # the message must contain it, in lower case; "|" separates alternatives
    statuses: tuple[int, ...] = (400,)
    path: str = "/v1/chat/completions"


CASES: dict[str, Case] = {
    name: Case(file_of(data, kind), cause)
    for name, (data, kind, cause) in BAD_FILES.items()
}
CASES |= {
    f"{kind}: {name}": Case(chat(image_part(url)), reason)
    for kind, urls in {"data URL": DATA_URLS, "URL": URLS}.items()
    for name, (url, reason) in urls.items()
}
CASES |= {
    f"file: {name}": Case(
        lambda server, path=path: chat(image_part(f"file://{server.media}/{path}")),
        reason,
    )
    for name, (path, reason) in FILES.items()
}
# Messages that are not of vLLM's type: pydantic takes OpenAI's, whose parts are an
# iterator.
OTHER_TYPE = {"tool_call_id": 5, "reasoning": 5}
CASES |= {
    f"file: {path} with {key}": Case(
        lambda server, path=path, key=key: of_other_type(
            key, image_part(f"file://{server.media}/{path}.png")
        ),
        FILES[path][1],
    )
    for path in ("pipe", "large", "text")
    for key in OTHER_TYPE
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

IMAGE = image_part("data:image/png;base64," + GOOD_DATA)


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
    "no type": Case(chat({"image": "x"}), "missing 'type' field"),
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
        '--hf-overrides \'{"architectures": ["llama_nemotron_nano_vl_video"]}\'',
    ),
    "audio": Case(
        chat({"type": "audio_url", "audio_url": {"url": data_url(b"x", "audio/wav")}}),
        "at most 0 audio(s)",
    ),
    "input audio": Case(
        chat({"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}}),
        "at most 0 audio(s)",
    ),
    "three images": Case(chat(IMAGE, IMAGE, IMAGE), "at most 2 image"),
    "thousand images": Case(chat(*[IMAGE] * 1000), "at most 2 image"),
    "one bad of two": Case(
        chat(IMAGE, image_part("data:image/png;base64,")), OTHER_KIND
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
    "typed beside an image": Case(chat(IMAGE, text_part("<image>")), "<image>"),
    "typed by the system": Case(
        {
            "messages": [
                {"role": "system", "content": "You see <image>."},
                {"role": "user", "content": [IMAGE, READ]},
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

MAX = "max_dynamic_patch must be a whole number from 1 to 256, but is "
MIN = "min_dynamic_patch must be a whole number from 1 to 256, but is "
SWITCH = "dynamic_image_size must be true or false, but is "
RECIPE = "resize must be one of 'fast', 'exact', 'hf', but is "

SETTINGS: dict[str, tuple[Any, str]] = {
    "max text": ({"max_dynamic_patch": "all"}, MAX + "'all'"),
    "max list": ({"max_dynamic_patch": [3]}, MAX + "[3]"),
    "max null": ({"max_dynamic_patch": None}, MAX + "none"),
    "max float": ({"max_dynamic_patch": 2.5}, MAX + "2.5"),
    "max zero": ({"max_dynamic_patch": 0}, MAX + "0"),
    "max negative": ({"max_dynamic_patch": -3}, MAX + "-3"),
    "max huge": ({"max_dynamic_patch": 10**9}, MAX + "1000000000"),
    "min zero": ({"min_dynamic_patch": 0}, MIN + "0"),
    "min text": ({"min_dynamic_patch": "1"}, MIN + "'1'"),
    "min above max": (
        {"min_dynamic_patch": 9, "max_dynamic_patch": 3},
        "max_dynamic_patch must be a whole number from 9 to 256, but is 3",
    ),
    "dynamic number": ({"dynamic_image_size": 3}, SWITCH + "3"),
    "dynamic text": ({"dynamic_image_size": "yes"}, SWITCH + "'yes'"),
    "thumbnail text": (
        {"use_thumbnail": "no"},
        "use_thumbnail must be true or false, but is 'no'",
    ),
    "resize unknown": ({"resize": "magic"}, RECIPE + "'magic'"),
    "resize number": ({"resize": 3}, RECIPE + "3"),
    "unknown": ({"tiles": 3}, "unknown mm_processor_kwargs ['tiles']"),
    "size": ({"image_size": 32}, "unknown mm_processor_kwargs ['image_size']"),
    "private": ({"__class__": "x"}, "unknown mm_processor_kwargs ['__class__']"),
    "word": ("fast", "should be a valid dictionary"),
    "list": ([1], "should be a valid dictionary"),
}
CASES |= {
    f"setting: {name}": Case(chat(IMAGE, mm_processor_kwargs=settings), reason)
    for name, (settings, reason) in SETTINGS.items()
}

# Embeddings

DAMAGED = "the data are damaged"
EMBEDS: dict[str, tuple[torch.Tensor | bytes, str]] = {
    "NaN": (torch.full((4, WIDTH), torch.nan), "must be finite numbers"),
    "infinite": (torch.full((4, WIDTH), torch.inf), "must be finite numbers"),
    "wide": (torch.zeros(4, WIDTH + 1), f"got {WIDTH + 1}, but model expects {WIDTH}"),
    "narrow": (torch.zeros(4, 1), f"got 1, but model expects {WIDTH}"),
    "rank 1": (torch.zeros(WIDTH), f"torch.float32 of shape (1, {WIDTH})"),
    "rank 0": (torch.zeros(()), "torch.float32 of shape (1,)"),
    "rank 5": (
        torch.zeros(1, 1, 1, 4, WIDTH),
        f"torch.float32 of shape (1, 1, 1, 1, 4, {WIDTH})",
    ),
    "empty": (torch.zeros(0, WIDTH), "at least one row"),
    "no width": (torch.zeros(4, 0), f"got 0, but model expects {WIDTH}"),
    "whole numbers": (torch.zeros(4, WIDTH, dtype=torch.int64), "not torch.int64"),
    "complex": (torch.zeros(4, WIDTH, dtype=torch.complex64), "complexfloatstorage"),
    "float8": (torch.zeros(4, WIDTH).to(torch.float8_e4m3fn), "not a plain tensor"),
    "meta": (torch.zeros(4, WIDTH, device="meta"), "not a plain tensor"),
    "repeated": (repeated(WIDTH), "so some repeat"),
    "compressed": (compressed(WIDTH), "compressed"),
    "slow pickle": (slow_pickle(levels=33), "not a plain tensor"),
    "words": (b"hello", DAMAGED),
    "nothing": (b"", DAMAGED),
    "long": (torch.zeros(3000, WIDTH), "1024"),
    "pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", DAMAGED),
}
CASES |= {
    f"embeds: {name}": Case(chat(embeds_part(tensor)), reason)
    for name, (tensor, reason) in EMBEDS.items()
}
# A part of OpenAI's types that vLLM takes for embeddings
TEXT_WITH_EMBEDS = {
    **text_part("a"),
    **embeds_part(EMBEDS["slow pickle"][0]),
    "type": "text",
    "uuid": "a",
}
CASES |= {
    f"embeds: slow pickle with {key}": Case(
        of_other_type(key, TEXT_WITH_EMBEDS), EMBEDS["slow pickle"][1]
    )
    for key in OTHER_TYPE
}

CASES |= {
    "embeds: two repeated": Case(
        chat(*[embeds_part(repeated(WIDTH))] * 2), "so some repeat"
    ),
    "embeds: repeated in an object": Case(
        chat(
            {
                "type": "image_embeds",
                "image_embeds": {
                    "image_embeds": embeds_part(repeated(WIDTH))["image_embeds"]
                },
            }
        ),
        "so some repeat",
    ),
    "embeds: repeated, with a name": Case(
        chat({**embeds_part(repeated(WIDTH)), "uuid": "a", "type": "text"}),
        "so some repeat",
    ),
}

# Those whose image or text alone is bad, which the offline API takes too
IMAGES = [
    name
    for name in CASES
    if name in BAD_FILES or name.startswith(("data URL", "URL", "typed", "embeds"))
]
