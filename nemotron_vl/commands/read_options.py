# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``nemotron-vl read``."""

import argparse
from pathlib import Path
from typing import Any

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import MAX_TILES

from ..documents.process import MOST_PAGES
from ..documents.tasks import SHIPPED
from .arguments import Ranges, http_url, number, positive


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_FOLDER_OR_URL")
    _add_question(parser)
    _add_result(parser)
    add_server(
        parser,
        "folder or hub name to serve meanwhile; with --url (default: the server's "
        "first) or --batch the name of the served model",
    )
    _add_pages(parser)
    _add_repetition(parser)


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument("--question", metavar="TEXT", help="asked about each page")
    group.add_argument(
        "--task", metavar="NAME", help="a ready question: text, markdown, table, fields"
    )
    group.add_argument(
        "--tasks",
        type=Path,
        default=SHIPPED,
        metavar="FILE",
        help="TOML file of tasks (default: documents/tasks.toml of this package)",
    )
    group.add_argument(
        "--system",
        metavar="TEXT",
        help="system message before the question; the model's fine-tuning had "
        "'Answer the questions.' (default: none)",
    )
    group.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="JSON schema that the answers follow; the default question asks for its "
        "data",
    )
    group.add_argument(
        "--max-tokens",
        type=number(),
        metavar="N",
        help="most tokens of an answer (default: 2048, or the task's)",
    )
    group.add_argument(
        "--per",
        choices=("page", "document"),
        default="page",
        help="ask about each page, or about as many pages of a document at once as fit "
        "the context (default: %(default)s)",
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    result = group.add_mutually_exclusive_group(required=True)
    result.add_argument(
        "--out",
        metavar="FILE",
        help="records, one JSON object a line; also a URL of fsspec, or -",
    )
    result.add_argument(
        "--batch",
        type=Path,
        metavar="FILE",
        help="write requests for `vllm run-batch` instead of sending them",
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="print pages, tiles, tokens and time, and ask nothing",
    )
    group.add_argument(
        "--rate",
        type=positive,
        metavar="PAGES",
        help="pages a second, for the time of --dry-run",
    )
    group.add_argument(
        "--root",
        metavar="FOLDER",
        help="write names relative to this folder, so that it can be moved",
    )
    group.add_argument(
        "--text-layer",
        choices=("ignore", "compare"),
        default="ignore",
        help="compare: write how far answers differ from the text that is in the PDF",
    )


def add_server(parser: argparse.ArgumentParser, about_model: str) -> None:
    """Options of the server, and of requests to it.

    Args:
        parser: They are added to this.
        about_model: What ``--model`` is.
    """
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--url", type=http_url, help="of a server, such as http://127.0.0.1:8000"
    )
    group.add_argument("--model", metavar="MODEL", help=about_model)
    group.add_argument(
        "--serve-options",
        default="",
        metavar="TEXT",
        help="further options of `vllm serve`, all in one: --serve-options='...'",
    )
    group.add_argument(
        "--at-once",
        type=number(),
        default=8,
        metavar="N",
        help="most requests at a time, and pages in memory (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=number(),
        default=1800,
        metavar="SECONDS",
        help="for an answer, with all retries (default: %(default)s)",
    )
    group.add_argument(
        "--wait",
        type=number(),
        default=120,
        metavar="SECONDS",
        help="for a server that is away or busy (default: %(default)s)",
    )


def _add_pages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which pages, and how they are drawn")
    group.add_argument(
        "--pages", type=Ranges, metavar="RANGES", help="of each document, such as 1-3,7"
    )
    group.add_argument(
        "--limit", type=number(), metavar="N", help="most pages that are read now"
    )
    add_drawing(group)
    group.add_argument(
        "--skip-blank", action="store_true", help="do not ask about pages without marks"
    )
    group.add_argument(
        "--rotate",
        choices=("never", "auto"),
        default="never",
        help="auto: turn pages whose text layer is not upright, and ask again, turned, "
        "where an answer is empty",
    )


def add_drawing(group: Any, tiles: str = "the model's") -> None:
    """Options of how documents are drawn.

    Args:
        group: They are added to this.
        tiles: The default of ``--max-tiles``.
    """
    group.add_argument(
        "--max-pages",
        type=number(),
        default=MOST_PAGES,
        metavar="N",
        help="most pages of a document; the others are one error (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--max-tiles",
        type=number(MAX_TILES),
        metavar="N",
        help=f"most tiles of a page's grid (default: {tiles}); set a server of "
        "--url the same way",
    )
    group.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="passwords of PDFs, one a line; each is tried",
    )


def _add_repetition(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is done again")
    group.add_argument(
        "--retry-errors",
        action="store_true",
        help="do the pages of errors again; the old records stay until then",
    )
    group.add_argument(
        "--retry-cut",
        action="store_true",
        help="the same for answers that were cut; --max-tokens may be another one",
    )
    group.add_argument(
        "--keep-going",
        action="store_true",
        help="go on if the server refuses the first pages all alike",
    )
