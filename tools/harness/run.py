#!/usr/bin/env python3
"""Ask a server about drawn documents twice: with lmms-eval, and with this package.

    python -m venv lmms-eval && lmms-eval/bin/pip install lmms-eval
    python tools/harness/run.py MODEL OUT --programs lmms-eval/bin

lmms-eval lives in an environment of its own and knows nothing of this package. It reads
the tasks of `tools/harness/tasks`, whose data this script draws, and talks to the
server through its OpenAI-compatible model. Exits with 1 if the accuracies differ in any
digit. Nothing is loaded from the internet.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from datasets import Dataset, Features, Image, List, Value
from openai import OpenAI

from nemotron_vl.checkpoints.embedded import is_embedded
from nemotron_vl.server import serving
from nemotron_vl.verify.documents import Question, draw_documents, draw_numbers
from nemotron_vl.verify.reading import ask_server, read

TASKS = Path(__file__).with_name("tasks")
DRAW = {"drawn_documents": draw_documents, "drawn_numbers": draw_numbers}
OPTIONS = (
    "--max-model-len=8192",
    "--max-num-seqs=16",
    "--enforce-eager",
    '--limit-mm-per-prompt={"image": 2}',
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a checkpoint or its name on the hub")
    parser.add_argument("out", type=Path, help="folder for data, answers and results")
    parser.add_argument(
        "--programs", type=Path, required=True, help="folder with lmms-eval"
    )
    parser.add_argument("--count", type=int, default=100, help="of documents")
    parser.add_argument("--dtype", default="auto", help="of the server")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="system message of both sides; lmms-eval then asks with its model "
        "async_openai, because its model openai takes none",
    )
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    task = "drawn_numbers" if is_embedded(args.model) else "drawn_documents"
    questions = DRAW[task](args.count)
    write_data(questions, out / f"{task}.parquet")
    options = (*OPTIONS, f"--dtype={args.dtype}")
    with serving(args.model, *options, log=out / "server.log") as url:
        theirs = lmms_eval(args.programs, url, args.model, task, out, args.system)
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        ours = read(ask_server(client, args.model, system=args.system), questions)
    results = {"task": task, "lmms_eval": theirs, "ours": ours.accuracy}
    (out / "results.json").write_text(json.dumps(results | {"ours": ours.as_dict()}))
    print(f"{task}: {len(questions)} documents")
    print(f"lmms-eval: {theirs!r}\nours:      {ours.accuracy!r}")
    return 0 if theirs == ours.accuracy else 1


def write_data(questions: list[Question], file: Path) -> None:
    """A Parquet file with the images, questions and answers."""
    features = Features(
        {
            "images": List(Image()),
            "question": Value("string"),
            "answer": Value("string"),
        }
    )
    columns = {
        "images": [question.images for question in questions],
        "question": [question.text for question in questions],
        "answer": [question.answer for question in questions],
    }
    Dataset.from_dict(columns, features).to_parquet(file)


def lmms_eval(
    programs: Path, url: str, model: str, task: str, out: Path, system: str | None
) -> float:
    """Accuracy that lmms-eval finds. Its working folder has the data."""
    results = out / "lmms-eval"
    shutil.rmtree(results, ignore_errors=True)  # of an earlier run
    settings = f"model={model},base_url={url}/v1,api_key=none,timeout=600"
    kind = "openai"
    if system is not None:
        kind = "async_openai"
        # As a file, because a comma would end the setting.
        (out / "system.txt").write_text(system)
        settings += ",system_prompt=system.txt"
    command = [
        *(str(programs.resolve() / "lmms-eval"), "--model", kind),
        *("--model_args", settings, "--tasks", task, "--include_path", str(TASKS)),
        *("--batch_size", "1", "--log_samples", "--output_path", str(results)),
    ]
    caches = {"HF_HOME": str(out / "cache"), "OPENAI_API_KEY": "none"}
    with (out / "lmms-eval.log").open("w") as log:
        done = subprocess.run(
            command,
            cwd=out,
            env={**os.environ, **caches},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    found = [*results.rglob("*_results.json")]
    if done.returncode or not found:  # after an error its status may be 0
        raise SystemExit(f"lmms-eval failed, see {log.name}")
    (file,) = found
    return json.loads(file.read_text())["results"][task]["exact_match,none"]


if __name__ == "__main__":
    sys.exit(main())
