"""Encode images in one engine and read them in another one, which has no vision tower.

Without URLs, start both servers on loopback first and stop them at the end. They
exchange embeddings as files, through vLLM's ECExampleConnector.
"""

import argparse
import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path

import httpx

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder-url", help="such as http://127.0.0.1:8001")
    parser.add_argument("--reader-url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--image", type=Path, help="PNG file (default: a sample image)")
    parser.add_argument("--question", default="Read the text.")
    args = parser.parse_args()
    model = args.model or tiny_checkpoint()
    if args.image:
        png = args.image.read_bytes()
    else:
        file = io.BytesIO()
        draw_text("640-27").save(file, "PNG")
        png = file.getvalue()

    with contextlib.ExitStack() as servers:
        encoder, reader = args.encoder_url, args.reader_url
        if not encoder or not reader:
            encoder, reader = start(servers, model)
        part = encode(encoder, model, png, args.question)
        print("The reader gets", json.dumps(part))
        print(ask(reader, model, part, args.question, max_tokens=64)["content"])


def start(servers: contextlib.ExitStack, model: str) -> tuple[str, str]:
    build = Path("build")
    build.mkdir(exist_ok=True)
    # A new one each time: names do not depend on the weights.
    store = servers.enter_context(tempfile.TemporaryDirectory())
    config = {
        "ec_connector": "ECExampleConnector",
        "ec_connector_extra_config": {"shared_storage_path": store},
    }

    trust = json.dumps({"nemotron_vl": {"trusted_uuids": True}})

    def serve(role: str, *options: str) -> str:
        transfer = json.dumps({**config, "ec_role": role})
        options += ("--max-model-len=8192", "--enforce-eager")
        options += (f"--ec-transfer-config={transfer}",)
        return servers.enter_context(
            serving(model, *options, log=build / f"{role}.log")
        )

    return serve("ec_producer"), serve(
        "ec_consumer",
        '--limit-mm-per-prompt={"image":0}',
        f"--additional-config={trust}",
    )


def encode(url: str, model: str, png: bytes, question: str) -> dict:
    """Encode an image; what the message to the reader has in its place."""
    data = base64.b64encode(png).decode()
    image = {"url": f"data:image/png;base64,{data}"}
    part = {"type": "image_url", "image_url": image}
    answer = ask(url, model, part, question, max_tokens=1)
    ((name, item),) = answer["ec_transfer_params"].items()
    return {"type": "image_embeds", "image_embeds": item["metadata"], "uuid": name}


def ask(url: str, model: str, part: dict, question: str, max_tokens: int) -> dict:
    content = [part, {"type": "text", "text": question}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    answer.raise_for_status()
    found = answer.json()
    return {**found, **found["choices"][0]["message"]}


if __name__ == "__main__":
    main()
