# SPDX-License-Identifier: Apache-2.0
"""The server that ``nemotron-vl read`` asks: a given one, or one of its own."""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.files import check_folder, read_json
from ..documents.finding import is_url
from ..documents.reading import ServerFailure
from ..documents.requests import Question
from ..server import serving_process

CONTEXT = 16384  # tokens, the limit of the model card
_FEWEST_TOKENS = 64  # of a page, for the most pages of a request
_NO_BLANKS = {"backend": "xgrammar", "disable_any_whitespace": True}


class Server(NamedTuple):
    """A server that runs.

    Args:
        url: Its address.
        process: If it is this command's own.
        log: File of its output.
    """

    url: str
    process: subprocess.Popen | None = None
    log: Path | None = None

    async def ended(self) -> None:
        """Wait for the end of a server of this command.

        Raises:
            ServerFailure: It has ended.
        """
        while self.process is None or self.process.poll() is None:
            await asyncio.sleep(0.5)
        status = self.process.returncode
        raise ServerFailure(f"vllm serve ended with status {status}; see {self.log}.")


@contextlib.contextmanager
def server(
    args: argparse.Namespace, question: Question, tell: Callable[[str], None]
) -> Iterator[Server]:
    """The given server, or one that runs while the block does."""
    if args.url:
        yield Server(args.url)
        return
    check_folder(args.model)
    log = _log(args.out)
    tell(f"Starting vllm serve (log: {log}) ...")
    # The server ends even if this process is killed.
    setpriv = shutil.which("setpriv")
    prefix = (setpriv, "--pdeathsig", "TERM") if setpriv else ()
    options = [*_serve_options(args, question), *shlex.split(args.serve_options)]
    with serving_process(args.model, *options, log=log, prefix=prefix) as started:
        process, url = started
        yield Server(url, process, log)


def _serve_options(args: argparse.Namespace, question: Question) -> list[str]:
    language = read_json(args.model, "config.json").get("llm_config", {})
    context = min(CONTEXT, language.get("max_position_embeddings", CONTEXT))
    images = context // _FEWEST_TOKENS if args.per == "document" else 1
    options = [
        f"--max-model-len={context}",
        f"--limit-mm-per-prompt={json.dumps({'image': images})}",
    ]
    if args.max_tiles:
        settings = {"max_dynamic_patch": args.max_tiles}
        options.append(f"--mm-processor-kwargs={json.dumps(settings)}")
    if question.schema is not None:
        options.append(f"--structured-outputs-config={json.dumps(_NO_BLANKS)}")
    return options


def _log(out: str) -> Path:
    if out == "-" or is_url(out):
        return Path(tempfile.gettempdir(), f"nemotron-vl-{os.getpid()}.server.log")
    return Path(f"{out}.server.log")
