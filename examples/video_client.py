"""Ask a server about a video through the OpenAI client.

Without --base-url, start a server on loopback first and stop it at the end.
"""

import argparse
import base64
import contextlib
from pathlib import Path

from openai import OpenAI

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import write_clip
from nemotron_vl.server import serving

# The switch: without it the model reads images only.
SWITCH = ("--hf-overrides", '{"architectures": ["Llama_Nemotron_Nano_VL_Video"]}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--video", type=Path, help="MP4 file (default: a sample clip)")
    parser.add_argument("--question", default="Read line 3.")
    args = parser.parse_args()
    model = args.model or tiny_checkpoint()
    Path("build").mkdir(exist_ok=True)

    server = contextlib.nullcontext(args.base_url)
    if not args.base_url:
        options = ("--max-model-len=4096", "--enforce-eager", *SWITCH)
        server = serving(model, *options, log="build/server.log")
    with server as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        file = args.video or Path("build/clip.mp4")
        if not args.video:
            write_clip(file, "17", "18", "19")  # a number in each frame
        data = base64.b64encode(file.read_bytes()).decode()
        video = {"url": f"data:video/mp4;base64,{data}"}
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": video},
                        {"type": "text", "text": args.question},
                    ],
                }
            ],
            temperature=0,
            max_tokens=64,
        )
        print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
