"""Questions about drawn pictures, asked through the chat API."""

import base64
import io

import httpx
from PIL import Image

from drawn_text import Question
from reference.nemotron_vl import Reference

# Of a server that is asked like that; the second gives the reference's pixels, the
# third a status of 1 when the engine has died.
SERVER_OPTIONS = [
    "--served-model-name=tiny",
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=1024",
    "--max-num-seqs=4",
    '--limit-mm-per-prompt={"image": 2}',
]
EXACT = '--mm-processor-kwargs={"resize": "exact"}'
EXIT_STATUS = (
    "--middleware=vllm_nemotron_vl.entrypoints.serve.middleware.exit_status"
    ".ExitStatusMiddleware"
)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_part(picture: Image.Image) -> dict:
    """A picture as a part of a chat message."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}}


def chat_request(question: Question, *, tokens: int, model: str = "tiny") -> dict:
    """Greedy, and as many tokens as asked for, as the reference answers."""
    parts = [picture_part(drawing.picture) for drawing in question.drawings]
    parts.append({"type": "text", "text": question.turns[0][0]})
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
    """What a server must answer to `chat_request`."""
    pictures = [drawing.picture for drawing in question.drawings]
    ids = reference.answer(question.prompt(), pictures, tokens)[1]
    return reference.tokenizer.decode(ids)
