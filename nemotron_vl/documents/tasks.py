# SPDX-License-Identifier: Apache-2.0
"""Ready questions, in a file that users copy and change."""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from ..regular_files import read_text
from .schemas import check_schema

SHIPPED = Path(__file__).with_name("tasks.toml")


class Task(NamedTuple):
    """A ready question.

    Args:
        question: The text.
        system: Text of a system message before it.
        schema: JSON schema of the answer.
        max_tokens: Most tokens of an answer.
    """

    question: str
    system: str | None = None
    schema: dict[str, Any] | None = None
    max_tokens: int | None = None


_KINDS = {"question": str, "system": str, "schema": dict, "max_tokens": int}


def read_task(name: str, file: Path = SHIPPED) -> Task:
    """A task of a file of tasks.

    Args:
        name: Such as ``markdown``.
        file: In TOML, a table for each task.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such file, or has no such task; names it.
    """
    try:
        tasks = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error
    task = tasks.get(name)
    if not isinstance(task, dict):
        raise ValueError(f"{file} has no task {name!r}. It has: {', '.join(tasks)}.")
    for key, value in task.items():
        if not isinstance(value, _KINDS.get(key, ())):
            raise ValueError(f"{file}, task {name}: {key} cannot be {value!r}.")
    if not task.get("question", "").strip():
        raise ValueError(f"{file}, task {name}: it has no question.")
    if task.get("max_tokens", 1) < 1:
        raise ValueError(f"{file}, task {name}: max_tokens must be at least 1.")
    if "schema" in task:
        check_schema(task["schema"], f"The schema of task {name} in {file}")
    return Task(**task)
