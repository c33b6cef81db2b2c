"""Ask about images with `LLM.generate`, each in a plain prompt."""

import argparse

from PIL import Image
from vllm import LLM, SamplingParams

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import draw_text

# A plain prompt spells out the chat format and has <image> for each image.
PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--image", nargs="+", help="files (default: two sample images)")
    parser.add_argument("--question", default="Read the text.")
    args = parser.parse_args()
    if args.image:
        images = [Image.open(file) for file in args.image]
    else:
        images = [draw_text("$12.50"), draw_text("640-27", paper="wheat")]

    llm = LLM(args.model or tiny_checkpoint(), max_model_len=8192, enforce_eager=True)
    prompts = [
        {
            "prompt": PROMPT.format(question=args.question),
            "multi_modal_data": {"image": image},
        }
        for image in images
    ]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=64)):
        print(f"{len(output.prompt_token_ids)} tokens: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
