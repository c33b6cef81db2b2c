"""Chat requests about drawn images, and the answers that the reference gives."""

import base64
import io
from typing import Any

import httpx
import torch
from PIL import Image

from drawn_text import Question
from nemotron_vl.verify.reference import Reference
from support.engines import ONE_PROCESS

# Options of a server for these requests. EXACT gives the reference's pixels. With
# EXIT_STATUS the server exits with status 1 when its engine has died.
SERVER_OPTIONS = [
    "--served-model-name=tiny",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=1024",
    "--max-num-seqs=4",
    '--limit-mm-per-prompt={"image": 2}',
]
# The engine's process is the worker, too: one process less to start, as on GPUs.
ONE_WORKER = f"--distributed-executor-backend={ONE_PROCESS}"
EXACT = '--mm-processor-kwargs={"resize": "exact"}'
EXIT_STATUS = (
    "--middleware=vllm_nemotron_vl.entrypoints.serve.middleware.exit_status"
    ".ExitStatusMiddleware"
)


# Of an answer about a document.
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["receipt", "letter"]},
        "lines": {
            "type": "array",
            "items": {"type": "string", "maxLength": 8},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["kind", "lines"],
    "additionalProperties": False,
}


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """An image as a file of a kind that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# Parts of a chat message


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def image_part(url: Any) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def png_part(image: Image.Image) -> dict:
    return image_part(data_url(saved(image, "PNG")))


def embeds_part(data: torch.Tensor | bytes) -> dict:
    """A tensor, or bytes in the place of a saved one."""
    if isinstance(data, torch.Tensor):
        file = io.BytesIO()
        torch.save(data, file)
        data = file.getvalue()
    encoded = base64.b64encode(data).decode()
    return {"type": "image_embeds", "image_embeds": encoded}


def chat_request(question: Question, *, tokens: int, model: str = "tiny") -> dict:
    """A greedy request that gives exactly `tokens` tokens, as the reference does."""
    parts = [png_part(image) for image in question.images]
    parts.append(text_part(question.turns[0][0]))
    return {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": tokens,
        "temperature": 0,
        "skip_special_tokens": False,
        "ignore_eos": True,
    }


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def reference_text(reference: Reference, question: Question, *, tokens: int) -> str:
    """The answer that a server must give to `chat_request`."""
    ids = reference.answer(question.prompt(), question.images, tokens)[1]
    return reference.tokenizer.decode(ids)
