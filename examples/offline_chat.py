"""Ask about a picture with `LLM.chat`, then ask once more."""

import argparse

import skimage.data
from PIL import Image
from vllm import LLM, SamplingParams

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.make_checkpoint import tiny_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: a tiny one with random weights")
    parser.add_argument("--image", help="file (default: a sample)")
    args = parser.parse_args()
    picture = Image.fromarray(skimage.data.page())
    if args.image:
        picture = Image.open(args.image)

    llm = LLM(args.model or tiny_checkpoint(), max_model_len=8192, enforce_eager=True)
    sampling = SamplingParams(temperature=0, max_tokens=64)
    first = [
        {"type": "image_pil", "image_pil": picture},
        {"type": "text", "text": "Read the first line."},
    ]
    messages: list[dict] = []
    for question in (first, "And the second?"):
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, sampling)[0].outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        print(repr(answer))


if __name__ == "__main__":
    main()
