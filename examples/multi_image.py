"""Ask about several images in one message."""

import argparse

from PIL import Image
from vllm import LLM, SamplingParams

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import draw_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--image", nargs="+", help="files (default: two sample images)")
    parser.add_argument("--question", default="Read both.")
    parser.add_argument("--max-tiles", type=int, default=6, help="most tiles per image")
    args = parser.parse_args()
    if args.image:
        images = [Image.open(file) for file in args.image]
    else:
        images = [draw_text("$12.50"), draw_text("640-27", paper="wheat")]

    llm = LLM(
        args.model or tiny_checkpoint(),
        max_model_len=16384,
        enforce_eager=True,
        limit_mm_per_prompt={"image": len(images)},
        # Fewer tiles per image leave room for more images.
        mm_processor_kwargs={"max_dynamic_patch": args.max_tiles},
    )
    content = [{"type": "image_pil", "image_pil": image} for image in images]
    content.append({"type": "text", "text": args.question})
    (output,) = llm.chat(
        [{"role": "user", "content": content}],
        SamplingParams(temperature=0, max_tokens=64),
    )
    print(f"{len(output.prompt_token_ids)} tokens: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
