"""Compare pictures: several in one message, with text between them."""

import argparse

import skimage.data
from PIL import Image
from vllm import LLM, SamplingParams

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.make_checkpoint import tiny_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: a tiny one with random weights")
    parser.add_argument("--image", nargs="+", help="files (default: three samples)")
    parser.add_argument("--max-tiles", type=int, default=6, help="for each picture")
    args = parser.parse_args()
    if args.image:
        pictures = [Image.open(file) for file in args.image]
    else:
        samples = (skimage.data.coffee, skimage.data.astronaut, skimage.data.chelsea)
        pictures = [Image.fromarray(sample()) for sample in samples]

    llm = LLM(
        args.model or tiny_checkpoint(),
        max_model_len=16384,
        enforce_eager=True,
        limit_mm_per_prompt={"image": len(pictures)},
        # Fewer tiles for each picture leave room for more of them.
        mm_processor_kwargs={"max_dynamic_patch": args.max_tiles},
    )
    content = []
    for number, picture in enumerate(pictures, 1):
        content.append({"type": "text", "text": f"Picture {number}:"})
        content.append({"type": "image_pil", "image_pil": picture})
    content.append({"type": "text", "text": "What do they have in common?"})
    (output,) = llm.chat(
        [{"role": "user", "content": content}],
        SamplingParams(temperature=0, max_tokens=64),
    )
    print(f"{len(output.prompt_token_ids)} tokens: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
