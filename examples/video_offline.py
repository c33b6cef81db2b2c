"""Ask about a video with `LLM.chat`, and about its frames with `LLM.generate`."""

import argparse
from pathlib import Path

from vllm import LLM, SamplingParams

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.images.drawn import write_clip

# The switch: without it the model reads images only.
VIDEO = {"architectures": ["Llama_Nemotron_Nano_VL_Video"]}

# A plain prompt has <img></img> for each video.
PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<img></img>\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--video", type=Path, help="file (default: a sample clip)")
    parser.add_argument("--question", default="Read line 2.")
    parser.add_argument("--frames", type=int, default=32, help="most frames to take")
    args = parser.parse_args()
    video = args.video
    if video is None:
        Path("build").mkdir(exist_ok=True)
        video = Path("build/clip.mp4")
        write_clip(video, "17", "18", "19")  # a number in each frame
    video = video.resolve()

    llm = LLM(
        args.model or tiny_checkpoint(),
        hf_overrides=VIDEO,
        media_io_kwargs={"video": {"num_frames": args.frames}},
        allowed_local_media_path=str(video.parent),
        max_model_len=16384 if args.model else 4096,
        enforce_eager=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=64)
    part = {"type": "video_url", "video_url": {"url": video.as_uri()}}
    content = [part, {"type": "text", "text": args.question}]
    (chat,) = llm.chat([{"role": "user", "content": content}], sampling)
    # A file may also be given as a path or as bytes, and frames as an array.
    prompt = PROMPT.format(question=args.question)
    prompts = [{"prompt": prompt, "multi_modal_data": {"video": video}}]
    (plain,) = llm.generate(prompts, sampling)
    for output in (chat, plain):
        print(f"{len(output.prompt_token_ids)} tokens: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
