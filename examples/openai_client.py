"""Ask a server about an image through the OpenAI client.

Without --base-url, start a server on loopback first and stop it at the end.
"""

import argparse
import base64
import contextlib
from pathlib import Path

from openai import OpenAI

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--image", type=Path, help="PNG file (default: a sample image)")
    parser.add_argument("--question", default="Read the text.")
    args = parser.parse_args()
    model = args.model or tiny_checkpoint()
    Path("build").mkdir(exist_ok=True)

    server = contextlib.nullcontext(args.base_url)
    if not args.base_url:
        options = ("--max-model-len=8192", "--enforce-eager")
        server = serving(model, *options, log="build/server.log")
    with server as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        file = args.image or Path("build/sample.png")
        if not args.image:
            draw_text("$12.50").save(file)
        data = base64.b64encode(file.read_bytes()).decode()
        image = {"url": f"data:image/png;base64,{data}"}
        stream = client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": image},
                        {"type": "text", "text": args.question},
                    ],
                }
            ],
            temperature=0,
            max_tokens=64,
            stream=True,
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
