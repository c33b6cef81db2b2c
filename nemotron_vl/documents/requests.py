# SPDX-License-Identifier: Apache-2.0
"""The question about each page: as a chat request, and whether an answer fits it."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..regular_files import open_regular, read_text
from .pages import Page
from .records import open_alone

_START = b'{"custom_id": '  # of a file of requests

_ABOUT_A_SCHEMA = (
    "Extract the data of this page as JSON that follows this JSON schema:\n{schema}"
)


class Question(NamedTuple):
    """What is asked about each page.

    Args:
        text: The question. A question without a text asks for the schema's data.
        schema: JSON schema of the answer, or ``None`` for plain text.
        max_tokens: Most tokens of an answer.
        system: Text of a system message before the question.
    """

    text: str | None
    schema: dict[str, Any] | None
    max_tokens: int
    system: str | None = None

    @classmethod
    def from_files(
        cls,
        text: str | None,
        schema_file: Path | None,
        max_tokens: int,
        system: str | None = None,
    ) -> "Question":
        """A question whose schema is in a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not a JSON schema.
        """
        schema = None
        if schema_file is not None:
            schema = _read_schema(schema_file)
        return cls(text, schema, max_tokens, system)

    @property
    def prompt(self) -> str:
        """The text that follows the image."""
        if self.text is not None:
            return self.text
        return _ABOUT_A_SCHEMA.format(schema=json.dumps(self.schema))

    @property
    def digest(self) -> str:
        """Equal for equal prompts, schemas and system messages, 12 characters."""
        asked = [self.prompt, self.schema]
        if self.system is not None:
            asked.append(self.system)
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]

    def chat_request(self, page: Page, model: str) -> dict[str, Any]:
        """The body of a request to ``/v1/chat/completions``, without sampling.

        Args:
            page: With an image.
            model: Its name on the server.
        """
        data = base64.b64encode(page.image).decode()
        url = f"data:{page.media_type};base64,{data}"
        return self._request(
            model,
            [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": self.prompt},
            ],
            self.max_tokens,
        )

    def trial_request(self, model: str) -> dict[str, Any]:
        """A request without a page: whether the server takes model and schema."""
        return self._request(model, "Say yes.", max_tokens=1)

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
            answer = {"name": "answer", "schema": self.schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": answer}
        return request

    def parse(self, answer: str) -> Any:
        """The answer, as data if there is a schema.

        Raises:
            ValueError: It does not follow the schema.
        """
        if self.schema is None:
            return answer
        import jsonschema
        from pydantic_core import from_json
        from referencing.exceptions import Unresolvable

        try:
            # Refuses what is nested so deeply that it could not be written again.
            data = from_json(answer, allow_inf_nan=False)
            json.dumps(data, allow_nan=False)  # 1e999 is read as infinity
        except ValueError as error:
            raise ValueError(f"The answer is not JSON: {error}") from error
        try:
            jsonschema.validate(data, self.schema)
        except jsonschema.ValidationError as error:
            at = error.json_path
            message = f"The answer does not follow the schema: {at}: {error.message}"
            raise ValueError(message) from error
        except RecursionError as error:
            raise ValueError("The answer is nested too deeply.") from error
        except Unresolvable as error:
            message = f"The schema refers to what it does not have: {error.ref}"
            raise ValueError(message) from error
        return data


def _read_schema(file: Path) -> dict[str, Any]:
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        schema = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"{file} must hold a JSON object, a schema.")
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        message = f"{file} is not a JSON schema: {error.json_path}: {error.message}"
        raise ValueError(message) from error
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            message = f"{file} refers to {reference}, which it does not have."
            raise ValueError(message) from error
    return schema


def _references(schema: Any) -> Iterator[str]:
    """Each reference to a place in the same schema, unless it has other names."""
    if isinstance(schema, dict):
        if "$id" in schema:
            return
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
    values = schema.values() if isinstance(schema, dict) else schema
    for value in values if isinstance(schema, (dict, list)) else ():
        yield from _references(value)


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
        Each page, after its request is written. Pages with errors have none.

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
            if page.error is None:
                # The name may not be UTF-8.
                name = page.file.encode(errors="backslashreplace").decode()
                request = {
                    "custom_id": f"{name}#{page.number}",
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": question.chat_request(page, model),
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
