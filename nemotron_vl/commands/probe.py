# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl probe``: whether the engine of a server makes tokens.

A server's ``/health`` tells whether the engine's processes live, also if they hang.
"""

import argparse
import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from ..printable import show
from .arguments import number

# Tokens of all requests, in the metrics of each release of vLLM.
_COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "probe",
        help="ask a server for one token within a time",
        description="Asks a server for one token. Exits with 0 if it comes in time, or "
        "if the engine is busy and makes tokens for other requests, with 1 if it makes "
        "none, and with 2 if the server refuses the request. Sends the key in "
        "VLLM_API_KEY. A liveness probe for Kubernetes.",
    )
    parser.add_argument(
        "url",
        nargs="?",
        default="http://127.0.0.1:8000",
        help="base URL of the server, without /v1; %(default)s by default",
    )
    parser.add_argument(
        "--seconds",
        type=number(),
        default=20,
        help="how long to wait; %(default)s by default",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    server = _Server(args.url.rstrip("/"), args.seconds)
    before = None
    try:
        before = server.tokens()
        server.generate()
    except urllib.error.HTTPError as error:
        show(f"The server answers with status {error.code}: {error.reason}")
        return 1 if error.code >= 500 else 2
    except TimeoutError:
        pass
    except (OSError, HTTPException) as error:
        show(f"The server does not answer: {error}")
        return 1
    else:
        show("The engine answers.")
        return 0
    made = 0
    if before is not None:  # else not even the API server answers
        server.wait(2)
        with contextlib.suppress(OSError, HTTPException):
            made = server.tokens() - before
    if made > 0:
        show(f"The engine is busy: {made} tokens for others in {args.seconds} s.")
        return 0
    show(f"The engine made no token within {args.seconds} s.")
    return 1


class _Server:
    """A server that is asked until a time is over.

    Args:
        url: Without a slash at its end.
        seconds: All requests together take no longer.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        # No proxy reaches a server of this machine.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Set when the time is over, in seconds from now."""
        self._deadline = time.monotonic() + seconds

    def tokens(self) -> int:
        """Tokens of all prompts and answers since the server's start."""
        lines = self._request("/metrics").decode().splitlines()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.partition("{")[0] in _COUNTERS
        )

    def generate(self) -> None:
        """Ask for one token."""
        models = json.loads(self._request("/v1/models"))
        request = {"model": models["data"][0]["id"], "prompt": "1", "max_tokens": 1}
        self._request("/v1/completions", request)

    def _request(self, path: str, body: Any = None) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with self._open(request, timeout=left) as answer:
                return answer.read()
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):  # while it connected or sent
                raise error.reason from None
            raise
