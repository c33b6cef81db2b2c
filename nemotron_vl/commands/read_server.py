# SPDX-License-Identifier: Apache-2.0
"""The server that a command asks: a given one, or one of its own."""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.files import check_folder, read_json
from ..documents.finding import is_url
from ..documents.reading import ServerFailure
from ..server import serving_process

if TYPE_CHECKING:
    import openai

CONTEXT = 16384  # tokens, the limit of the model card
EMBEDDING_CONTEXT = 10240  # of the models that embed and rank pages
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
    url: str | None,
    model: str,
    options: Sequence[str],
    log: Path,
    tell: Callable[[str], None],
) -> Iterator[Server]:
    """The given server, or one that runs while the block does.

    Args:
        url: Of the given server.
        model: Folder or hub name of the one to start.
        options: Of ``vllm serve``.
        log: File for its output.
        tell: Called with a sentence when it starts.
    """
    if url:
        yield Server(url)
        return
    check_folder(model)
    tell(f"Starting vllm serve (log: {log}) ...")
    # The server ends even if this process is killed.
    setpriv = shutil.which("setpriv")
    prefix = (setpriv, "--pdeathsig", "TERM") if setpriv else ()
    with serving_process(model, *options, log=log, prefix=prefix) as (process, url):
        yield Server(url, process, log)


@contextlib.asynccontextmanager
async def connected(
    served: Server,
    args: argparse.Namespace,
    tell: Callable[[str], None],
    key: str | None = None,
) -> AsyncIterator[tuple["openai.AsyncOpenAI", asyncio.Future]]:
    """A client of a server, and a future with the exception if the server ends.

    Args:
        served: The server.
        args: Of the command.
        tell: See `connect`.
        key: Variable with the key of a server that is not that of ``--url``.
    """
    from ..documents.client import KEYS, connect, keys_of

    keys = KEYS
    if key and served.process is None:
        keys = keys_of(served.url, key, args.url)
    client = connect(served.url, args.timeout, args.wait, tell, keys)
    ended = asyncio.ensure_future(served.ended())
    try:
        async with client:
            yield client, ended
    finally:
        ended.cancel()


def context_of(model: str, most: int) -> int:
    """The context of a model, up to so many tokens."""
    language = read_json(model, "config.json").get("llm_config", {})
    return min(most, language.get("max_position_embeddings", most))


def chat_options(
    model: str, several: bool, max_tiles: int | None, schema: object = None
) -> list[str]:
    """Options of ``vllm serve`` for a model that answers questions.

    Args:
        model: Folder or hub name.
        several: Whether a request has several images.
        max_tiles: Most tiles of an image; the model's if ``None``.
        schema: Of the answers, if they have one.
    """
    context = context_of(model, CONTEXT)
    images = context // _FEWEST_TOKENS if several else 1
    options = [
        f"--max-model-len={context}",
        f"--limit-mm-per-prompt={json.dumps({'image': images})}",
    ]
    options += _tile_options(max_tiles)
    if schema is not None:
        options.append(f"--structured-outputs-config={json.dumps(_NO_BLANKS)}")
    return options


def embedding_options(model: str, max_tiles: int | None = None) -> list[str]:
    """Options of ``vllm serve`` for a model that embeds or ranks pages."""
    context = context_of(model, EMBEDDING_CONTEXT)
    return [f"--max-model-len={context}", *_tile_options(max_tiles)]


def _tile_options(max_tiles: int | None) -> list[str]:
    if not max_tiles:
        return []
    settings = {"max_dynamic_patch": max_tiles}
    return [f"--mm-processor-kwargs={json.dumps(settings)}"]


def log_of(out: str) -> Path:
    """File for the output of a server, beside a result."""
    if out == "-" or is_url(out):
        return Path(tempfile.gettempdir(), f"nemotron-vl-{os.getpid()}.server.log")
    return Path(f"{out.rstrip('/')}.server.log")
