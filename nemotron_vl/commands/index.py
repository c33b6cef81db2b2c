# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl index``: embed the pages of documents, so that `find` finds them.

Imports neither PyTorch, nor transformers, nor vLLM.
"""

import argparse
import asyncio
import contextlib
import shlex

from tqdm import tqdm

from ..checkpoints.tiler import Tiler
from ..documents.finding import Folders, absolute, find_documents, real_root
from ..documents.job import Job, Options
from ..documents.pages import Drawing
from ..printable import show
from .arguments import check_packages, number, read_passwords
from .progress import (
    append_all,
    beside,
    count_pages,
    left_out,
    progress,
    tell,
)
from .read_options import add_drawing, add_server
from .read_server import Server, connected, embedding_options, log_of, server


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "index",
        help="embed the pages of documents, to find them with `find`",
        description="Embeds each page of PDFs, TIFFs and images through a server, and "
        "keeps the vectors in an index. Started again, it goes on with the pages that "
        "are not there, does changed files again, and removes those that are gone from "
        "folders with documents. Exits with 1 if a page has an error. The environment "
        "variable NEMOTRON_VL_API_KEY is the server's key.",
    )
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_FOLDER_OR_URL")
    parser.add_argument(
        "--to", required=True, metavar="INDEX", help="folder, or URI of LanceDB"
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="name documents relative to this folder, so that it can be moved",
    )
    parser.add_argument(
        "--text-layer",
        action="store_true",
        help="embed the text that is in a PDF with the image of its page",
    )
    add_server(
        parser,
        "folder or hub name to serve meanwhile; with --url the name of the served "
        "model (default: the server's first)",
    )
    group = parser.add_argument_group("which pages, and how they are drawn")
    add_drawing(group, "6")
    group = parser.add_argument_group("what is done again")
    group.add_argument(
        "--retry-errors", action="store_true", help="do the pages of errors again"
    )
    group.add_argument(
        "--remove-gone",
        action="store_true",
        help="remove documents also of folders that now hold none",
    )
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="go on if the server refuses the first pages all alike",
    )
    group.add_argument(
        "--approximate-from",
        type=number(),
        default=100_000,
        metavar="N",
        help="pages from which the search is approximate (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_packages("index", "lancedb", "openai", "pypdfium2")
    from ..search.embedding import TILES
    from ..search.index import Index

    if not (args.url or args.model):
        raise ValueError("Give --url of a server, or --model to start one.")
    found = find_documents(args.paths, args.root)
    if not (found.documents or args.remove_gone):
        raise ValueError(f"The folders hold no PDFs and no images.{left_out(found)}")
    tiler = Tiler.from_model(None, args.max_tiles or TILES)
    drawing = Drawing(
        tiler,
        text_layer=args.text_layer,
        passwords=read_passwords(args.password_file),
    )
    options = Options(
        drawing,
        most_pages=args.max_pages,
        text_layer=args.text_layer,
        at_once=args.at_once,
        timeout=args.timeout,
        keep_going=args.keep_going,
    )
    root = real_root(args.root)
    places = [] if root else [*map(absolute, args.paths)]
    settings = {
        "max_tiles": tiler.max_tiles,
        "text_layer": args.text_layer,
        "relative": root is not None,
    }
    with Index(args.to, settings, root, places) as index:
        if args.retry_errors:
            index.retry_errors()
        try:
            return _embed(args, options, found, index, root)
        except KeyboardInterrupt:
            tell("stopped; the same command goes on")
            return 130


def _embed(
    args: argparse.Namespace, options: Options, found: Folders, index, root: str | None
) -> int:
    from ..search.leaving import gone

    before = index.files
    with Job(found.documents, options, index, tell) as job:
        if job.has_pages():
            total = count_pages(job, found)
            with _server(args) as served, progress(total) as bar:
                asyncio.run(_add(args, served, options, job, index, bar))
        for record in job.copied():
            index.append(record)
    left = missing = gone(before, args.paths, found, root, empty=True)
    if not args.remove_gone:
        left = gone(before, args.paths, found, root)
    index.remove(left)
    index.tidy(args.approximate_from)
    counts = index.counts([document.name for document in found.documents])
    parts = [f"pages: {len(index)}", f"new: {index.appended}"]
    parts.append(f"errors: {counts.errors}")
    if left:
        parts.append(f"documents that are gone: {len(left)}")
    if away := len(missing) - len(left):
        parts.append(f"of folders without documents, kept (--remove-gone): {away}")
    show(f"{args.to}: {', '.join(parts)}{left_out(found)}")
    return 1 if counts.errors else 0


def _server(args: argparse.Namespace) -> contextlib.AbstractContextManager[Server]:
    options = []
    if not args.url:
        options = embedding_options(args.model, args.max_tiles)
        options += shlex.split(args.serve_options)
    return server(args.url, args.model, options, log_of(args.to), tell)


async def _add(
    args: argparse.Namespace,
    served: Server,
    options: Options,
    job: Job,
    index,
    bar: tqdm,
) -> None:
    """Append a record for each page."""
    from ..search.embedding import embed_trial_page, find_embedder

    said = beside(bar)
    tokens = options.drawing.tiler.most_tokens
    async with connected(served, args, said) as (client, ended):
        given = args.model if args.url else None
        embedder, vector = await find_embedder(
            client, model=given, timeout=args.timeout, image_tokens=tokens
        )
        page = await embed_trial_page(client, embedder, args.timeout, ended)
        name = args.model if served.process else embedder.model
        index.settle(name, vector, page)
        await append_all(job.answers(client, embedder, ended), index, bar, said)
