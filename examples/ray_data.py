"""Ask about each page of a folder with Ray Data: one engine per GPU, on many hosts.

    pip install "ray[data]" ".[documents]"
    python examples/ray_data.py FOLDER OUT --question "Read the text." --engines 8

Each host must see FOLDER. OUT gets files of JSON lines: a record for each page, and in
OUT/errors one for each page that cannot be drawn. `--cpus N` reserves
N cores for an engine instead of a GPU.
"""

import argparse
import io
from pathlib import Path

import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents.pages import (
    Document,
    Drawing,
    Page,
    find_documents,
    read_pages,
)

# A plain prompt spells out the chat format and has <image> for the image.
PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def make_config(args: argparse.Namespace) -> vLLMEngineProcessorConfig:
    engine = {
        "max_model_len": args.max_model_len,
        "limit_mm_per_prompt": {"image": 1},
    }
    if args.max_tiles:
        engine["mm_processor_kwargs"] = {"max_dynamic_patch": args.max_tiles}
    settings = {}
    if args.cpus:
        engine["enforce_eager"] = True  # starts sooner
        settings["placement_group_config"] = {"bundles": [{"CPU": args.cpus}]}
        # Otherwise all engines of a host take the same cores.
        cores = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        settings["runtime_env"] = {"env_vars": cores}
    return vLLMEngineProcessorConfig(
        model_source=args.model,
        engine_kwargs=engine,
        concurrency=(args.engines, args.engines),
        batch_size=args.batch_size,
        # A page that the engine refuses is a record with its cause.
        should_continue_on_error=True,
        log_engine_metrics=False,  # Ray's metrics need ray[serve]
        # `ask` makes prompts as the engine takes them.
        prepare_multimodal_stage=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        **settings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--question", default="Read the text.")
    parser.add_argument("--model", help="default: the embedded checkpoint")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument(
        "--cpus", type=float, help="cores that Ray reserves for an engine without a GPU"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="pages")
    parser.add_argument("--max-tiles", type=int, help="most tiles of a page's grid")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--max-tokens", type=int, default=2048)
    args = parser.parse_args()
    args.model = args.model or tiny_checkpoint()
    tiler = Tiler.from_model(args.model, args.max_tiles)
    prompt = PROMPT.format(question=args.question)

    def draw(row: dict) -> list[dict]:
        document = Document(row["file"], Path(row["file"]))
        pages = read_pages([document], Drawing(tiler), lambda file, page: False)
        return [check(page)._asdict() for page in pages]

    def check(page: Page) -> Page:
        """An image that cannot be decoded would end the job."""
        try:
            if page.error is None:
                Image.open(io.BytesIO(page.image)).load()
        except Exception as error:  # Pillow raises all kinds
            return page._replace(error=f"{type(error).__name__}: {error}")
        return page

    def ask(page: dict) -> dict:
        image = Image.open(io.BytesIO(page["image"]))
        return {
            "file": page["file"],
            "page": page["number"],
            "prompt": prompt,
            "multimodal_data": {"image": image},
            "sampling_params": {"temperature": 0, "max_tokens": args.max_tokens},
        }

    def answer(row: dict) -> dict:
        record = {"file": row["file"], "page": row["page"]}
        if error := row.get("__inference_error__"):
            return record | {"answer": None, "error": error}
        return record | {"answer": row["generated_text"], "error": None}

    files = [{"file": str(file)} for file in find_documents([args.folder.resolve()])]
    pages = ray.data.from_items(files).flat_map(draw)
    drawn = pages.filter(lambda page: page["error"] is None)
    processor = build_processor(make_config(args), preprocess=ask, postprocess=answer)
    processor(drawn).write_json(str(args.out.resolve()))

    # Draws the pages again, which costs little beside their answers.
    broken = pages.filter(lambda page: page["error"] is not None)
    broken = broken.select_columns(["file", "number", "error"])
    broken.write_json(str(args.out.resolve() / "errors"))


if __name__ == "__main__":
    main()
