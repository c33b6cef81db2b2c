"""Ask about each page of documents with Ray Data: one engine per GPU, on many hosts.

    pip install "ray[data]" ".[documents]"
    python examples/ray_data.py FOLDER OUT --question "Read the text." --engines 8
    nemotron-vl export OUT --to csv --out answers.csv

FOLDER and OUT are folders that each host sees, or URLs of fsspec. OUT gets files of
JSON lines: a record for each page as `nemotron-vl read` writes it. `--cpus N` reserves
N cores for an engine instead of a GPU.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import ray
from PIL import Image
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

from nemotron_vl import documents
from nemotron_vl.checkpoints.embedded import tiny_checkpoint

# A plain prompt spells out the chat format and has <image> for the image.
PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
DOCUMENTS = 16  # of a task, which share the process that draws
BLOCK = 1 << 20  # bytes; the default of 128 MiB would be 250 pages
ERROR = "__inference_error__"  # Ray's stages leave out rows that have one


def make_config(args: argparse.Namespace) -> vLLMEngineProcessorConfig:
    engine = {
        "max_model_len": args.max_model_len,
        "limit_mm_per_prompt": {"image": 1},
    }
    if args.max_tiles:
        engine["mm_processor_kwargs"] = {"max_dynamic_patch": args.max_tiles}
    if args.schema:  # otherwise small models fill answers with blanks
        no_blanks = {"backend": "xgrammar", "disable_any_whitespace": True}
        engine["structured_outputs_config"] = no_blanks
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


class Lines(BlockBasedFileDatasink):
    """Each task writes a file. Ray's own JSON would make integers of a column with
    nulls floats."""

    def write_block_to_file(self, block: BlockAccessor, file) -> None:
        for row in block.iter_rows(public_row_format=False):
            file.write(row["line"].encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--root", help="file names in records are relative to it")
    parser.add_argument("--question", help="default: about the data of the schema")
    parser.add_argument("--schema", type=Path, help="file with the answers' schema")
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
    if args.question is None and args.schema is None:
        parser.error("give --question, --schema, or both")
    args.model = args.model or tiny_checkpoint()
    schema = documents.read_schema(args.schema) if args.schema else None
    question = documents.Question(args.question, schema, args.max_tokens)
    prompt = PROMPT.format(question=question.prompt)
    tiler = documents.Tiler.from_model(args.model, args.max_tiles)
    options = documents.Options(documents.Drawing(tiler))

    def draw(row: dict) -> Iterator[dict]:
        """The pages of some documents, one at a time."""
        found = [documents.Found(**document) for document in row["documents"]]
        with documents.Job(found, options) as job:
            for page in job.pages():
                record = {"file": page.file, "page": page.number}
                if page.error is not None:
                    record["error"] = page.error
                if source := job.source(page.file):
                    record["source"] = source
                yield {"record": json.dumps(record), "image": page.image}

    def ask(row: dict) -> dict:
        if error := json.loads(row["record"]).get("error"):
            return {ERROR: error}
        try:
            image = Image.open(io.BytesIO(row["image"]))
            image.load()
        except Exception as error:  # Pillow raises all kinds
            return {ERROR: f"{type(error).__name__}: {error}"}
        sampling = {"temperature": 0, "max_tokens": args.max_tokens}
        if question.grammar is not None:
            sampling["structured_outputs"] = {"json": question.grammar}
        return {
            "image": b"",
            "prompt": prompt,
            "multimodal_data": {"image": image},
            "sampling_params": sampling,
        }

    def answer(row: dict) -> dict:
        record = json.loads(row["record"])
        if error := row[ERROR]:
            record["error"] = error
        else:
            asked, answered = row["num_input_tokens"], row["num_generated_tokens"]
            # Ray does not hand on the engine's own reason.
            room = min(args.max_tokens, args.max_model_len - asked)
            reason = "length" if answered >= room else "stop"
            record |= documents.record_of(question, row["generated_text"], reason)
            record["tokens"] = {"prompt": asked, "answer": answered}
        return {"line": json.dumps(record)}

    # A few pages go on while the others of a document are drawn.
    ray.data.DataContext.get_current().target_max_block_size = BLOCK
    files = [d._asdict() for d in documents.find_documents([args.folder], args.root)[0]]
    if not files:
        parser.error(f"{args.folder} holds no PDFs and no images")
    tasks = [files[i : i + DOCUMENTS] for i in range(0, len(files), DOCUMENTS)]
    pages = ray.data.from_items([{"documents": task} for task in tasks]).flat_map(draw)
    processor = build_processor(make_config(args), preprocess=ask)
    system, path = fsspec.url_to_fs(args.out)
    lines = Lines(path, filesystem=system, file_format="jsonl")
    processor(pages).map(answer).write_datasink(lines)


if __name__ == "__main__":
    main()
