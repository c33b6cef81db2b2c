# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl read``: ask about each page of PDFs, TIFFs and images.

Imports neither PyTorch, nor transformers, nor vLLM. With ``--model`` another process
serves the model.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import MAX_TILES

from ..checkpoints.files import check_folder, read_json
from ..checkpoints.tiler import Tiler
from ..documents.pages import Document, Drawing, Page, find_documents
from ..documents.process import MOST_PAGES, PageProcess
from ..documents.reading import RETRIES, find_model, read_answers
from ..documents.records import PageRecords
from ..documents.requests import Question, write_batch
from ..printable import printable, show
from ..server import serving_process
from .arguments import number

_PACKAGES = ("jsonschema", "openai", "pypdfium2")  # the extra "documents"
_CONTEXT = 16384  # tokens, the limit of the model card


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "read",
        help="ask about each page of documents in files and folders",
        description="Asks a server about each page of PDFs, TIFFs and images and "
        "writes a record for each to a file of JSON lines. Started again, it goes on "
        "with the pages that have no record. Exits with 1 if a record is an error. The "
        "environment variable OPENAI_API_KEY is the server's key.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--question", metavar="TEXT", help="asked about each page")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="system message before the question; the model's fine-tuning had "
        "'Answer the questions.' (default: none)",
    )
    parser.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="JSON schema that the answers follow; the default question asks for its "
        "data",
    )
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument(
        "--out", type=Path, metavar="FILE", help="records, one JSON object a line"
    )
    result.add_argument(
        "--batch",
        type=Path,
        metavar="FILE",
        help="write requests for `vllm run-batch` instead of sending them",
    )
    parser.add_argument("--url", help="of a server, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="folder or hub name to serve meanwhile; with --url (default: the server's "
        "first) or --batch the name of the served model",
    )
    parser.add_argument(
        "--serve-options",
        default="",
        metavar="TEXT",
        help="further options of `vllm serve`, all in one: --serve-options='...'",
    )
    parser.add_argument(
        "--max-tiles",
        type=number(MAX_TILES),
        metavar="N",
        help="most tiles of a page's grid (default: the model's); set a server of "
        "--url the same way",
    )
    parser.add_argument(
        "--max-tokens",
        type=number(),
        default=2048,
        metavar="N",
        help="most tokens of an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once",
        type=number(),
        default=8,
        metavar="N",
        help="most requests at a time, and pages in memory (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=number(),
        default=1800,
        metavar="SECONDS",
        help="for an answer, with all retries (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pages",
        type=number(),
        default=MOST_PAGES,
        metavar="N",
        help="most pages of a document; the others are one error (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--retry-errors",
        action="store_true",
        help="remove the records of errors and do their pages again",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    missing = [package for package in _PACKAGES if not find_spec(package)]
    if missing:
        names = " ".join(missing)
        raise RuntimeError(
            f"`nemotron-vl read` needs more packages: pip install {names} (the extra "
            '"documents" of this package)'
        )
    if args.question is None and args.schema is None:
        raise ValueError("Give --question, --schema, or both.")
    question = Question.from_files(
        args.question, args.schema, args.max_tokens, args.system
    )
    files = find_documents(args.paths)
    if not files:
        raise ValueError("The folders hold no PDFs and no images.")
    if args.batch:
        try:
            return _write_batch(args, question, files)
        except KeyboardInterrupt:
            show("nemotron-vl: stopped; no requests are written", sys.stderr)
            return 130
    if not (args.url or args.model):
        raise ValueError("Give --url of a server, or --model to start one.")
    if args.url:
        urlsplit(args.url).port  # noqa: B018 - raises an error for a wrong one
    retried = {str(file) for file in files} if args.retry_errors else set()
    with (
        PageRecords(args.out, question.digest, retried) as records,
        PageProcess(Drawing(_tiler(args)), args.max_pages) as process,
    ):
        try:
            return _read(args, question, files, process, records)
        except KeyboardInterrupt:
            show("nemotron-vl: stopped; the same command goes on", sys.stderr)
            return 130


def _tiler(args: argparse.Namespace) -> Tiler:
    served = args.model and not args.url and not args.batch
    local = args.model and Path(args.model).is_dir()
    return Tiler.from_model(args.model if served or local else None, args.max_tiles)


def _documents(files: list[Path]) -> list[Document]:
    return [Document(str(file), file) for file in files]


def _write_batch(
    args: argparse.Namespace, question: Question, files: list[Path]
) -> int:
    if not args.model:
        raise ValueError("--batch needs --model, the model that `vllm run-batch` runs.")
    written = errors = 0
    with (
        PageProcess(Drawing(_tiler(args)), args.max_pages) as process,
        _progress(_count(process, files), done=0) as bar,
    ):
        pages = process.read(_documents(files), lambda file, page: False)
        for page in write_batch(pages, question, args.model, args.batch):
            bar.update()
            written += page.error is None
            errors += page.error is not None
            if page.error is not None:
                bar.write(_complaint(page.file, page.number, page.error), sys.stderr)
    show(f"{args.batch}: requests: {written}, errors: {errors}")
    return 1 if errors else 0


def _read(
    args: argparse.Namespace,
    question: Question,
    files: list[Path],
    process: PageProcess,
    records: PageRecords,
) -> int:
    total = _count(process, files)
    pages = process.read(_documents(files), records.done)
    first = next(pages, None)
    before = len(records)
    rate = ""
    if first is not None:
        pages = itertools.chain([first], pages)
        with _server(args) as url, _progress(total, done=before) as bar:
            start = time.perf_counter()
            asyncio.run(_ask(args, url, question, pages, process, records, bar))
            seconds = time.perf_counter() - start
        rate = f" at {(len(records) - before) / seconds:.2f} pages/s"
    show(
        f"{args.out}: records: {len(records)}, new: {len(records) - before}{rate}, "
        f"errors: {records.errors}"
    )
    return 1 if records.errors else 0


async def _ask(
    args: argparse.Namespace,
    url: str,
    question: Question,
    pages: Iterator[Page],
    process: PageProcess,
    records: PageRecords,
    bar: tqdm,
) -> None:
    """Append a record for each page."""
    import openai

    from ..documents.client import BoundedClient

    # No proxy reaches a server of this machine.
    local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    async with openai.AsyncOpenAI(
        http_client=BoundedClient(trust_env=not local),
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1",
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        max_retries=RETRIES,
        timeout=openai.Timeout(args.timeout, connect=10),
    ) as client:
        given = args.url and args.model
        model = await find_model(client, given, question, args.timeout)
        answers = read_answers(
            client, model, question, pages, args.at_once, args.timeout
        )
        try:
            async with contextlib.aclosing(answers):
                async for record in answers:
                    records.append(record)
                    bar.update()
                    if "error" in record:
                        place = record["file"], record["page"]
                        bar.write(_complaint(*place, record["error"]), sys.stderr)
        finally:
            # A thread may wait for a page, and this process would wait for the thread.
            process.kill()


def _complaint(file: str, number: int | None, error: str) -> str:
    page = "" if number is None else f", page {number}"
    return printable(f"nemotron-vl: {file}{page}: {error}")


def _count(process: PageProcess, files: list[Path]) -> int | None:
    """The number of all pages, if a terminal shows progress."""
    if not sys.stderr.isatty():
        return None
    counted = tqdm(files, "counting pages", unit="file", leave=False)
    return sum(process.count(file) for file in counted)


def _progress(total: int | None, done: int) -> tqdm:
    """A bar with rate and time left, on a terminal only."""
    return tqdm(total=total, initial=done, unit="page", disable=total is None)


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The given server, or one that runs while the block does."""
    if args.url:
        yield args.url
        return
    check_folder(args.model)
    language = read_json(args.model, "config.json").get("llm_config", {})
    context = min(_CONTEXT, language.get("max_position_embeddings", _CONTEXT))
    options = [f"--max-model-len={context}", '--limit-mm-per-prompt={"image": 1}']
    if args.max_tiles:
        settings = {"max_dynamic_patch": args.max_tiles}
        options.append(f"--mm-processor-kwargs={json.dumps(settings)}")
    log = args.out.with_name(args.out.name + ".server.log")
    show(f"Starting vllm serve (log: {log}) ...", sys.stderr)
    # The server ends even if this process is killed.
    setpriv = shutil.which("setpriv")
    prefix = (setpriv, "--pdeathsig", "TERM") if setpriv else ()
    options += shlex.split(args.serve_options)
    with serving_process(args.model, *options, log=log, prefix=prefix) as (_, url):
        yield url
