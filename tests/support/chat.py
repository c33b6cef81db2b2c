"""Chat requests about drawn images, and the answers that the reference gives."""

import base64
import io

import httpx
from PIL import Image

from drawn_text import Question
from reference.nemotron_vl import Reference

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
EXACT = '--mm-processor-kwargs={"resize": "exact"}'
EXIT_STATUS = (
    "--middleware=vllm_nemotron_vl.entrypoints.serve.middleware.exit_status"
    ".ExitStatusMiddleware"
)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_part(picture: Image.Image) -> dict:
    """An image as a part of a chat message."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}}


def chat_request(question: Question, *, tokens: int, model: str = "tiny") -> dict:
    """A greedy request that gives exactly `tokens` tokens, as the reference does."""
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
    """The answer that a server must give to `chat_request`."""
    pictures = [drawing.picture for drawing in question.drawings]
    ids = reference.answer(question.prompt(), pictures, tokens)[1]
    return reference.tokenizer.decode(ids)
