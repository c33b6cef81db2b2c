# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl export``: records of ``read`` as documents, tables or a checking page.

Imports neither PyTorch, nor transformers, nor vLLM.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import MAX_TILES

from ..checkpoints.tiler import Tiler
from ..documents.corrections import Corrections, apply, read_corrections
from ..documents.fields import fields_of
from ..documents.finding import Found, opened_locally
from ..documents.markdown import write_markdown
from ..documents.merging import merge_documents
from ..documents.outputs import OutputFolder
from ..documents.results import Results, read_records
from ..documents.schemas import MERGE
from ..printable import show
from .arguments import number, read_passwords

FORMATS = ("md", "html", "csv", "parquet", "jsonl")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="make documents, tables or a page for checking of what `read` wrote",
        description="Makes of the records of `nemotron-vl read` a Markdown file for "
        "each document, a table with a row for each page or document, or a page for a "
        "browser that shows each page beside its answer, for checking. Replaces only "
        "earlier exports. Exits with 1 if a correction was refused.",
    )
    parser.add_argument(
        "records", help="file of records (also a URL), or folder of part files"
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        required=True,
        help="md: a file for each document; html: the page for checking; csv, parquet, "
        "jsonl: a table",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for md and html, file for the others",
    )
    parser.add_argument(
        "--per",
        choices=("page", "document"),
        default="page",
        help="document: merge the answers about the pages of a document, by the "
        f"keyword {MERGE} of the schema's properties (default: page)",
    )
    parser.add_argument(
        "--corrections",
        type=Path,
        metavar="FILE",
        help="corrections that the page for checking saved",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="folder of the documents, for html, if they have moved",
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="passwords of PDFs for html, one a line; each is tried",
    )
    parser.add_argument(
        "--max-tiles",
        type=number(MAX_TILES),
        metavar="N",
        help="draw PDFs for html as for N tiles (default: as `read` did)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with opened_locally(Found(args.records, args.records)) as records:
        results = read_records(records)
    if args.to == "html" and args.per == "document":
        raise ValueError("The page for checking shows pages: leave out --per document.")
    _check_packages(args)
    corrections: Corrections = {}
    refused: list[str] = []
    if args.corrections:
        corrections, refused = read_corrections(args.corrections, results)
    if args.to != "html":
        apply(results, corrections)
    shown = results
    if args.per == "document":
        shown = results._replace(records=[*merge_documents(results)])
    _write(args, shown, corrections)
    for sentence in refused:
        show(f"nemotron-vl: {sentence}", sys.stderr)
    documents = sum(1 for _ in results.documents())
    corrected = f", {len(corrections)} corrected" if args.corrections else ""
    show(f"{len(results.records)} records of {documents} documents{corrected}.")
    return 1 if refused else 0


def _check_packages(args: argparse.Namespace) -> None:
    needed = ["jsonschema"] if args.corrections else []
    needed += {"html": ["pypdfium2"], "parquet": ["pyarrow"]}.get(args.to, [])
    if missing := " ".join(name for name in needed if not find_spec(name)):
        raise RuntimeError(f"This export needs more packages: pip install {missing}")


def _write(
    args: argparse.Namespace, results: Results, corrections: Corrections
) -> None:
    if args.to in ("md", "html"):
        with OutputFolder(args.out) as folder:
            if args.to == "md":
                write_markdown(folder, results)
                return
            from ..documents.checking import write_checking_page

            most = args.max_tiles or results.settings.get("max_tiles")
            tiler = Tiler.from_model(None, most)
            passwords = read_passwords(args.password_file)
            write_checking_page(
                folder, results, corrections, tiler, args.root, passwords
            )
        return
    from ..documents import tables

    fields = fields_of(results.schema, results.records)
    rows = tables.rows(results.records, fields, args.per)
    if args.to == "parquet":
        tables.write_parquet(args.out, rows, fields)
    else:
        write = {"csv": tables.write_csv, "jsonl": tables.write_jsonl}[args.to]
        write(args.out, rows)
