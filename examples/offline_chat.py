"""Ask about an image with `LLM.chat`, then ask a second question."""

import argparse

from PIL import Image
from vllm import LLM, SamplingParams

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import draw_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--image", help="file (default: a sample image)")
    args = parser.parse_args()
    image = draw_text("640-27", paper="wheat")
    if args.image:
        image = Image.open(args.image)

    llm = LLM(args.model or tiny_checkpoint(), max_model_len=8192, enforce_eager=True)
    sampling = SamplingParams(temperature=0, max_tokens=64)
    first = [
        {"type": "image_pil", "image_pil": image},
        {"type": "text", "text": "Read the text."},
    ]
    messages: list[dict] = []
    for question in (first, "How many characters are there?"):
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, sampling)[0].outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        print(repr(answer))


if __name__ == "__main__":
    main()
