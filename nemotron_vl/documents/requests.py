# SPDX-License-Identifier: Apache-2.0
"""The question about each page: as a chat request, and whether an answer fits it."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..regular_files import open_regular
from .pages import Page
from .records import open_alone
from .schemas import parse, without_rules

_START = b'{"custom_id": '  # of a file of requests

_ABOUT_A_SCHEMA = (
    "Extract the data of this page as JSON that follows this JSON schema:\n{schema}"
)


def image_part(page: Page) -> dict[str, Any]:
    """A page as a part of a message."""
    data = base64.b64encode(page.image).decode()
    url = f"data:{page.media_type};base64,{data}"
    return {"type": "image_url", "image_url": {"url": url}}


class Question(NamedTuple):
    """What is asked about each page, or about several pages at once.

    Args:
        text: The question. A question without a text asks for the schema's data.
        schema: JSON schema of the answer, or ``None`` for plain text.
        max_tokens: Most tokens of an answer.
        system: Text of a system message before the question.
        structural: Send the schema as vLLM's structural tag, which lets an answer
            have at most one blank between its values. Small models may otherwise
            fill all of it with blanks.
    """

    text: str | None
    schema: dict[str, Any] | None = None
    max_tokens: int = 2048
    system: str | None = None
    structural: bool = False

    @property
    def prompt(self) -> str:
        """The text that follows the images."""
        if self.text is not None:
            return self.text
        return _ABOUT_A_SCHEMA.format(schema=json.dumps(self.grammar))

    @property
    def grammar(self) -> dict[str, Any] | None:
        """The schema as vLLM's structured outputs take it."""
        return without_rules(self.schema)

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept with the answers."""
        return {
            "question": self.prompt,
            "system": self.system,
            "schema": self.schema,
            "max_tokens": self.max_tokens,
        }

    def chat_request(self, pages: Iterable[Page], model: str) -> dict[str, Any]:
        """The body of a request to ``/v1/chat/completions``.

        Args:
            pages: With images.
            model: Its name on the server.
        """
        content = [image_part(page) for page in pages]
        content.append({"type": "text", "text": self.prompt})
        return self._request(model, content, self.max_tokens)

    def trial_request(self, model: str) -> dict[str, Any]:
        """A request without a page: whether the server takes all but the images."""
        return self._request(model, self.prompt, max_tokens=1)

    def _request(self, model: str, content: Any, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        request = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if self.schema is not None:
            request["response_format"] = self._response_format()
        return request

    def _response_format(self) -> dict[str, Any]:
        schema = self.grammar
        if not self.structural:
            answer = {"name": "answer", "schema": schema, "strict": True}
            return {"type": "json_schema", "json_schema": answer}
        form = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
        return {"type": "structural_tag", "format": form}

    def parse(self, answer: str) -> Any:
        """The answer, as data if there is a schema.

        Raises:
            ValueError: It does not follow the schema.
        """
        return answer if self.schema is None else parse(answer, self.schema)


def write_batch(
    pages: Iterable[Page], question: Question, model: str, out: Path
) -> Iterable[Page]:
    """Write a file of OpenAI batch requests, for ``vllm run-batch``.

    A line has the request for a page. Its ``custom_id`` is the file, ``#`` and the
    number of the page. The file appears when it is complete.

    Args:
        pages: Pages with and without errors.
        question: What is asked.
        model: Its name for ``vllm run-batch``.
        out: A file of requests is replaced.

    Yields:
        Each page, after its request is written. Pages with errors, and blank ones that
        were looked for, have none.

    Raises:
        ValueError: `out` is another file, or another process writes to it.
    """
    if out.exists():
        with open_regular(out) as old:
            if old.read(len(_START)) not in (_START, b""):
                raise ValueError(f"{out} is no file of requests. Choose another file.")
    part = out.with_name(out.name + ".part")
    lines = io.BufferedWriter(open_alone(part))
    try:
        lines.truncate(0)
        for page in pages:
            if page.error is None and not page.blank:
                request = {
                    "custom_id": f"{page.file}#{page.number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": question.chat_request([page], model),
                }
                lines.write(json.dumps(request).encode() + b"\n")
            yield page
        lines.flush()
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        lines.close()
