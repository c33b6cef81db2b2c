# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl read``: ask about each page of PDFs, TIFFs and images.

Imports neither PyTorch, nor transformers, nor vLLM. With ``--model`` another process
serves the model.
"""

import argparse
import asyncio
import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ..checkpoints.tiler import Tiler
from ..documents.equal import equal_files
from ..documents.finding import Folders, find_documents, is_url, real_root
from ..documents.job import Job, Options
from ..documents.pages import Drawing
from ..documents.reading import find_model
from ..documents.records import PageRecords, Records
from ..documents.remote import RemoteRecords
from ..documents.requests import Question, write_batch
from ..documents.schemas import read_schema
from ..documents.tasks import read_task
from ..printable import show
from .arguments import check_packages, read_passwords
from .progress import (
    append_all,
    beside,
    count_pages,
    left_out,
    place_of,
    progress,
    tell,
)
from .read_options import add_options
from .read_server import CONTEXT, Server, chat_options, connected, log_of, server

_PACKAGES = ("jsonschema", "openai", "pypdfium2")  # the extra "documents"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "read",
        help="ask about each page of documents in files and folders",
        description="Asks a server about each page of PDFs, TIFFs and images and "
        "writes a record for each to a file of JSON lines. Started again, it goes on "
        "with the pages that have no record, and does changed files again. Exits with "
        "1 if a record is an error. The environment variable NEMOTRON_VL_API_KEY is "
        "the server's key; OPENAI_API_KEY goes through https or to this machine only.",
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    packages = [*_PACKAGES]
    if args.text_layer == "compare":
        packages.append("jiwer")  # the extra "text-layer"
    check_packages("read", *packages)
    question = _question(args)
    options = _options(args)
    found = find_documents(args.paths, args.root)
    if not found.documents:
        raise ValueError(f"The folders hold no PDFs and no images.{left_out(found)}")
    if args.batch or args.dry_run:
        try:
            do = _write_batch if args.batch else _show_costs
            return do(args, question, options, found)
        except KeyboardInterrupt:
            show("nemotron-vl: stopped; nothing is written", sys.stderr)
            return 130
    if not (args.url or args.model):
        raise ValueError("Give --url of a server, or --model to start one.")
    if args.url:
        urlsplit(args.url).port  # noqa: B018 - raises an error for a wrong one
    if args.rotate == "auto" and args.per == "document":
        raise ValueError("--rotate auto needs --per page.")
    with _records(args, question) as records:
        if isinstance(records, PageRecords):
            retried = {*["error"] * args.retry_errors, *["cut"] * args.retry_cut}
            records.retry({document.name for document in found.documents}, retried)
        try:
            return _read(args, question, options, found, records)
        except KeyboardInterrupt:
            tell("stopped; the same command goes on")
            return 130


def _question(args: argparse.Namespace) -> Question:
    schema = None if args.schema is None else read_schema(args.schema)
    text, system, max_tokens = args.question, args.system, args.max_tokens
    if args.task:
        if text is not None or schema is not None:
            raise ValueError("--task has a question of its own.")
        task = read_task(args.task, args.tasks)
        text, schema = task.question, task.schema
        system = task.system if system is None else system
        max_tokens = max_tokens or task.max_tokens
    if text is None and schema is None:
        raise ValueError("Give --task, --question, --schema, or both of these.")
    if text is not None and not text.strip():
        raise ValueError("The question is empty.")
    structural = schema is not None and bool(args.url or args.batch)
    question = Question(text, schema, system=system, structural=structural)
    return question._replace(max_tokens=max_tokens) if max_tokens else question


def _options(args: argparse.Namespace) -> Options:
    served = args.model and not args.url and not args.batch
    local = args.model and Path(args.model).is_dir()
    drawing = Drawing(
        Tiler.from_model(args.model if served or local else None, args.max_tiles),
        text_layer=args.text_layer == "compare" or args.rotate == "auto",
        find_blank=args.skip_blank,
        passwords=read_passwords(args.password_file),
    )
    return Options(
        drawing,
        most_pages=args.max_pages,
        pages=args.pages,
        limit=args.limit,
        per_document=args.per == "document",
        context=CONTEXT,
        rotate=args.rotate == "auto",
        text_layer=args.text_layer == "compare",
        at_once=args.at_once,
        timeout=args.timeout,
        keep_going=args.keep_going,
    )


def _records(args: argparse.Namespace, question: Question) -> Records:
    """Where the records go."""
    settings: dict[str, Any] = question.settings | {
        "model": args.model,
        "max_tiles": args.max_tiles,
        "per": args.per,
        "rotate": args.rotate,
        "skip_blank": args.skip_blank,
        "text_layer": args.text_layer,
        "relative": args.root is not None,
    }
    root = real_root(args.root)
    if args.out == "-":
        return Records(settings, root)
    changeable = {"max_tokens"} if args.retry_cut else set()
    if is_url(args.out):
        return RemoteRecords(args.out, settings, root, changeable)
    return PageRecords(Path(args.out), settings, root, changeable)


def _write_batch(
    args: argparse.Namespace, question: Question, options: Options, found: Folders
) -> int:
    if not args.model:
        raise ValueError("--batch needs --model, the model that `vllm run-batch` runs.")
    if (args.per, args.rotate, args.text_layer) != ("page", "never", "ignore"):
        raise ValueError("--batch takes no --per, --rotate and --text-layer.")
    written = errors = 0
    with (
        Job(found.documents, options) as job,
        progress(count_pages(job, found)) as bar,
    ):
        said = beside(bar)
        for page in write_batch(job.pages(), question, args.model, args.batch):
            bar.update()
            written += page.error is None and not page.blank
            errors += page.error is not None
            if page.error is not None:
                said(place_of(page.file, page.number, page.error))
    show(f"{args.batch}: requests: {written}, errors: {errors}{left_out(found)}")
    return 1 if errors else 0


def _show_costs(
    args: argparse.Namespace, question: Question, options: Options, found: Folders
) -> int:
    """What reading would take."""
    pages = tiles = tokens = errors = 0
    others, _ = equal_files(found.documents)
    for page in Job(others, options).measured():
        if page.error is not None:
            errors += 1
            tell(place_of(page.file, page.number, page.error))
            continue
        cut = options.drawing.tiler.describe(*page.size, "fast")
        pages, tiles = pages + 1, tiles + cut["tiles"]
        tokens += cut["prompt_tokens"]
    show(
        f"documents: {len(found.documents)}, pages: {pages}, tiles: {tiles}, prompt "
        f"tokens: {tokens} and the question, answers: up to "
        f"{pages * question.max_tokens} tokens, errors: {errors}{left_out(found)}"
    )
    if args.rate:
        minutes, seconds = divmod(round(pages / args.rate), 60)
        show(f"at {args.rate:g} pages/s: {minutes} min {seconds} s")
    return 1 if errors else 0


def _read(
    args: argparse.Namespace,
    question: Question,
    options: Options,
    found: Folders,
    records: Records,
) -> int:
    names = [document.name for document in found.documents]
    rate = ""
    with Job(found.documents, options, records, tell) as job:
        if job.has_pages():
            total = count_pages(job, found)
            with _server(args, question) as served, progress(total) as bar:
                start = time.perf_counter()
                asyncio.run(_ask(args, served, question, job, records, bar))
                seconds = time.perf_counter() - start
            rate = f" at {records.appended / seconds:.2f} pages/s"
        for record in job.copied():
            records.append(record)
    counts, everything = records.counts(names), records.counts()
    parts = [f"records: {counts.records}", f"new: {records.appended}{rate}"]
    parts.append(f"errors: {counts.errors}")
    if counts.cut:
        parts.append(f"cut: {counts.cut} (--retry-cut)")
    if everything.records > counts.records:
        others = everything.records - counts.records
        parts.append(f"records of other documents: {others}")
    summary = f"{args.out}: {', '.join(parts)}{left_out(found)}"
    show(summary, sys.stderr if args.out == "-" else None)
    return 1 if counts.errors else 0


def _server(
    args: argparse.Namespace, question: Question
) -> contextlib.AbstractContextManager[Server]:
    options = []
    if not args.url:
        several = args.per == "document"
        options = chat_options(args.model, several, args.max_tiles, question.schema)
        options += shlex.split(args.serve_options)
    return server(args.url, args.model, options, log_of(args.out), tell)


async def _ask(
    args: argparse.Namespace,
    served: Server,
    question: Question,
    job: Job,
    records: Records,
    bar: tqdm,
) -> None:
    """Append a record for each page."""
    said = beside(bar)
    async with connected(served, args, said) as (client, ended):
        given = args.model if args.url else None
        model = await find_model(client, question, given, args.timeout)
        records.settle(args.model if served.process else model.model)
        await append_all(job.answers(client, model, ended), records, bar, said)
