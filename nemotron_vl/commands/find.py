# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl find``: find the pages for a question, rank them, and ask about them.

Imports neither PyTorch, nor transformers, nor vLLM.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import MAX_TILES

from ..checkpoints.tiler import Tiler
from ..documents.finding import absolute, is_url
from ..documents.pages import Drawing
from ..documents.process import PageProcess
from ..documents.requests import Question
from ..printable import show
from .arguments import check_packages, number, read_passwords, url_or_model
from .progress import tell
from .read_options import add_server
from .read_server import chat_options, connected, embedding_options, server

if TYPE_CHECKING:
    from ..search.asking import FoundPage

_CANDIDATES = 5  # times --limit, that are ranked


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "find",
        help="find the pages of an index for a question, rank them, ask about them",
        description="Embeds a question, lists the pages that are most like it, ranks "
        "them by a second model, and asks a third about the best ones. A model that is "
        "given in the place of a server is served meanwhile. The environment variables "
        "NEMOTRON_VL_API_KEY, NEMOTRON_VL_RERANK_API_KEY and "
        "NEMOTRON_VL_ANSWER_API_KEY are the keys of --url, --rerank and --answer.",
    )
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument(
        "--in", dest="index", required=True, metavar="INDEX", help="what `index` wrote"
    )
    add_server(
        parser,
        "folder or hub name of the embedding model, to serve meanwhile; with --url the "
        "name of the served model (default: the server's first)",
    )
    group = parser.add_argument_group("what is done with the pages")
    group.add_argument(
        "--limit",
        type=number(),
        default=10,
        metavar="N",
        help="most pages that are listed (default: %(default)s)",
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="compare the question with each page, also of an index of many",
    )
    group.add_argument(
        "--rerank",
        type=url_or_model,
        metavar="URL_OR_MODEL",
        help="rank the pages by this model",
    )
    group.add_argument(
        "--candidates",
        type=number(),
        metavar="N",
        help=f"most pages that are ranked (default: {_CANDIDATES} times --limit)",
    )
    group.add_argument(
        "--answer",
        type=url_or_model,
        metavar="URL_OR_MODEL",
        help="ask this model about the best pages",
    )
    group.add_argument(
        "--answer-pages",
        type=number(),
        default=4,
        metavar="N",
        help="most pages that are asked about (default: %(default)s)",
    )
    group.add_argument(
        "--ask", metavar="TEXT", help="ask this about them (default: the question)"
    )
    group.add_argument(
        "--max-tokens",
        type=number(),
        default=1024,
        metavar="N",
        help="most tokens of the answer (default: %(default)s)",
    )
    group.add_argument(
        "--max-tiles",
        type=number(MAX_TILES),
        metavar="N",
        help="most tiles of a page for --answer (default: the model's)",
    )
    group.add_argument(
        "--root", metavar="FOLDER", help="folder of the documents, if they have moved"
    )
    group.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="passwords of PDFs, one a line; each is tried",
    )
    group = parser.add_argument_group("the result")
    group.add_argument(
        "--json", action="store_true", help="a line of JSON for each page"
    )
    group.add_argument(
        "--html",
        type=Path,
        metavar="FOLDER",
        help="write a page for a browser that shows the pages beside the answer",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_packages("find", "lancedb", "openai", "pypdfium2")
    from ..search import asking
    from ..search.store import Store

    if not args.question.strip():
        raise ValueError("The question is empty.")
    if not (args.url or args.model):
        raise ValueError("Give --url of a server, or --model to start one.")
    if args.candidates and args.candidates < args.limit:
        raise ValueError("--candidates is less than --limit.")
    store = Store.open(args.index)
    if store is None:
        raise ValueError(f"There is no index at {args.index}.")
    vector = _embed(args, store)
    candidates = args.candidates or _CANDIDATES * args.limit
    most = candidates if args.rerank else args.limit
    root, places = args.root, [absolute(args.root)] if args.root else []
    if not is_url(args.index):  # otherwise others may have written it
        root = root or store.settings["root"]
        places += store.settings["places"] + ([root] if root else [])
    opened = args.rerank or args.answer or args.html
    found = asking.find_pages(
        store, vector, most, places if opened else None, args.exact
    )
    model = args.answer if args.answer and not is_url(args.answer) else None
    tiler = Tiler.from_model(model, args.max_tiles)
    # A page is ranked with the text with which it was embedded.
    text_layer = bool(args.rerank) and store.settings.get("text_layer", False)
    passwords = read_passwords(args.password_file)
    drawing = Drawing(tiler, text_layer=text_layer, passwords=passwords)
    if args.rerank or args.answer:
        with PageProcess(drawing) as process:
            asking.draw(found, process, root)
    text = cut = None
    failures: list[Exception] = []
    if args.rerank:
        tokens = Tiler.from_model(None, store.settings.get("max_tiles")).most_tokens
        with _noted(failures):
            found = _rank(args, found, tokens)
    if args.answer and found:
        with _noted(failures):
            text, cut = _answer(args, found[: args.limit], tiler)
    found = found[: args.limit]
    for one in found:
        if one.error:
            tell(f"{one}: {one.error}")
    _show(args, found, text, cut)
    if cut:
        tell(f"The answer: {cut}")
    for failure in failures:
        tell(f"nemotron-vl: {failure}")
    if args.html:
        from ..documents.checking import write_checking_page
        from ..documents.outputs import OutputFolder

        shown = asking.results(args.question, text, cut, found, root)
        with OutputFolder(args.html) as folder:
            write_checking_page(folder, shown, {}, tiler, root, drawing.passwords)
    return 1 if failures else 0


@contextlib.contextmanager
def _noted(failures: list[Exception]) -> Iterator[None]:
    """Note a failure, so that what was found is shown."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        failures.append(error)


def _embed(args: argparse.Namespace, store) -> list[float]:
    from ..search.embedding import find_embedder

    async def embed(client, ended):
        model, timeout = args.model if args.url else None, args.timeout
        _, trial = await find_embedder(client, model=model, timeout=timeout)
        store.check(trial)
        _, vector = await find_embedder(client, args.question, model, timeout)
        return vector

    options = [] if args.url else embedding_options(args.model)
    return _with_server(args, args.url or args.model, options, embed)


def _rank(
    args: argparse.Namespace, found: "list[FoundPage]", image_tokens: int
) -> "list[FoundPage]":
    from ..documents.client import RERANK_KEY
    from ..search.asking import rank

    async def ask(client, ended):
        how = args.at_once, args.timeout, ended, image_tokens
        return await rank(client, args.question, found, *how)

    options = [] if is_url(args.rerank) else embedding_options(args.rerank)
    return _with_server(args, args.rerank, options, ask, RERANK_KEY)


def _answer(
    args: argparse.Namespace, found: "list[FoundPage]", tiler: Tiler
) -> tuple[str, str | None]:
    from ..documents.client import ANSWER_KEY
    from ..search.asking import answer

    question = Question(args.ask or args.question, max_tokens=args.max_tokens)

    async def ask(client, ended):
        most = args.answer_pages
        return await answer(client, question, found, tiler, most, args.timeout, ended)

    options = []
    if not is_url(args.answer):
        options = chat_options(args.answer, True, args.max_tiles)
    return _with_server(args, args.answer, options, ask, ANSWER_KEY)


def _with_server(
    args: argparse.Namespace,
    place: str,
    options: list[str],
    ask: Callable[[Any, asyncio.Future], Awaitable[Any]],
    key: str | None = None,
) -> Any:
    """What a server answers: a given one, or one of its own that runs meanwhile."""
    url = place if is_url(place) else None
    options = [*options, *shlex.split(args.serve_options)]
    name = f"nemotron-vl-{os.getpid()}-{os.path.basename(place)}.server.log"
    log = Path(tempfile.gettempdir(), name)

    async def connect_and_ask() -> Any:
        async with connected(served, args, tell, key) as (client, ended):
            return await ask(client, ended)

    with server(url, place, options, log, tell) as served:
        return asyncio.run(connect_and_ask())


def _show(
    args: argparse.Namespace,
    found: "list[FoundPage]",
    text: str | None,
    cut: str | None,
) -> None:
    pages = [str(one) for one in found if one.asked]
    if args.json:
        for rank, one in enumerate(found, 1):
            place = {"rank": rank, "file": one.hit.file, "page": one.hit.page}
            line = place | {"score": one.score, "cosine": round(one.hit.score, 6)}
            copies = [copy.file for copy in one.copies]
            line |= {"copies": copies} if copies else {}
            show(json.dumps(line | ({"error": one.error} if one.error else {})))
        if text is not None:
            answer = {"answer": text, "pages": pages}
            show(json.dumps(answer | ({"cut": cut} if cut else {})))
        return
    show("rank  score  cosine  page")
    for rank, one in enumerate(found, 1):
        score = "" if one.score is None else f"{one.score:.3f}"
        show(f"{rank:4}  {score:>5}  {one.hit.score:6.3f}  {one}")
    if text is not None:
        show(f"\n{text}\n\nPages: {', '.join(pages)}")
