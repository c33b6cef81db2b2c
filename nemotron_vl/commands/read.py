# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl read``: ask about each page of PDFs, TIFFs and images.

Imports neither PyTorch, nor transformers, nor vLLM. With ``--model`` another process
serves the model.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ..checkpoints.tiler import Tiler
from ..documents.equal import equal_files
from ..documents.finding import Folders, find_documents, is_url
from ..documents.job import Job, Options
from ..documents.pages import Drawing
from ..documents.reading import find_model
from ..documents.records import PageRecords, Records
from ..documents.remote import RemoteRecords
from ..documents.requests import Question, write_batch
from ..documents.schemas import read_schema
from ..documents.tasks import read_task
from ..printable import printable, show
from .arguments import read_passwords
from .read_options import add_options
from .read_server import CONTEXT, Server, server

_SUFFIXES = 8  # of files that are not read, that are listed
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
    if missing := [package for package in packages if not find_spec(package)]:
        names = " ".join(missing)
        raise RuntimeError(
            f"`nemotron-vl read` needs more packages: pip install {names} (extras "
            "of this package)"
        )
    question = _question(args)
    options = _options(args)
    found = find_documents(args.paths, args.root)
    if not found.documents:
        raise ValueError(f"The folders hold no PDFs and no images.{_left_out(found)}")
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
            _tell("stopped; the same command goes on")
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
    root = args.root
    if root is not None and not is_url(root):
        root = os.path.realpath(root)
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
        _progress(_count(job, found)) as bar,
    ):
        tell = _beside(bar)
        for page in write_batch(job.pages(), question, args.model, args.batch):
            bar.update()
            written += page.error is None and not page.blank
            errors += page.error is not None
            if page.error is not None:
                tell(_place(page.file, page.number, page.error))
    show(f"{args.batch}: requests: {written}, errors: {errors}{_left_out(found)}")
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
            _tell(_place(page.file, page.number, page.error))
            continue
        cut = options.drawing.tiler.describe(*page.size, "fast")
        pages, tiles = pages + 1, tiles + cut["tiles"]
        tokens += cut["prompt_tokens"]
    show(
        f"documents: {len(found.documents)}, pages: {pages}, tiles: {tiles}, prompt "
        f"tokens: {tokens} and the question, answers: up to "
        f"{pages * question.max_tokens} tokens, errors: {errors}{_left_out(found)}"
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
    with Job(found.documents, options, records, _tell) as job:
        if job.has_pages():
            total = _count(job, found)
            with server(args, question, _tell) as served, _progress(total) as bar:
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
    summary = f"{args.out}: {', '.join(parts)}{_left_out(found)}"
    show(summary, sys.stderr if args.out == "-" else None)
    return 1 if counts.errors else 0


async def _ask(
    args: argparse.Namespace,
    served: Server,
    question: Question,
    job: Job,
    records: Records,
    bar: tqdm,
) -> None:
    """Append a record for each page."""
    from ..documents.client import connect

    tell = _beside(bar)
    client = connect(served.url, args.timeout, args.wait, tell)
    ended = asyncio.ensure_future(served.ended())
    try:
        async with client:
            given = args.model if args.url else None
            model = await find_model(client, question, given, args.timeout)
            records.settle(args.model if served.process else model.model)
            answers = job.answers(client, model, ended)
            async with contextlib.aclosing(answers):
                async for record in answers:
                    records.append(record)
                    bar.update(len(record.get("pages", [None])))
                    for key in ("error", "cut"):
                        if key in record:
                            place = record["file"], record["page"]
                            tell(_place(*place, record[key]))
                            break
    finally:
        ended.cancel()


def _tell(text: str) -> None:
    show(printable(f"nemotron-vl: {text}"), sys.stderr)


def _beside(bar: tqdm) -> Callable[[str], None]:
    """`_tell`, for as long as there is a bar."""
    return lambda text: bar.write(printable(f"nemotron-vl: {text}"), sys.stderr)


def _place(file: str, number: int | None, text: str) -> str:
    return f"{file}{'' if number is None else f', page {number}'}: {text}"


def _left_out(found: Folders) -> str:
    """Which files are not read, by suffix."""
    if not found.left_out:
        return ""
    kinds = found.left_out.most_common(_SUFFIXES)
    listed = [f"{n} {suffix or 'without a suffix'}" for suffix, n in kinds]
    if others := found.left_out.total() - sum(n for _, n in kinds):
        listed.append(f"{others} others")
    return f"; not read: {', '.join(listed)}"


def _count(job: Job, found: Folders) -> int | None:
    """The number of pages that are read, if a terminal shows progress."""
    if not sys.stderr.isatty() or any(document.remote for document in found.documents):
        return None
    return sum(1 for _ in tqdm(job.measured(), "counting pages", leave=False))


def _progress(total: int | None) -> tqdm:
    """A bar with rate and time left, on a terminal only."""
    return tqdm(total=total, unit="page", disable=total is None)
