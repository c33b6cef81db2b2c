# SPDX-License-Identifier: Apache-2.0
"""Corrections of answers, which the checking page saves.

A line of the file is a JSON object: ``file`` and ``page`` of a record,
``answer_sha256`` of the answer that is corrected, and either ``answer``, the new one,
or ``fields``, the properties that change.
"""

import json
from pathlib import Path
from typing import Any

from ..regular_files import read_text
from .results import Record, Results

_MOST_BYTES = 1 << 28

Corrections = dict[tuple[str, int | None], dict[str, Any]]


def read_corrections(file: Path, results: Results) -> tuple[Corrections, list[str]]:
    """The corrections of these records, by file and page.

    Returns:
        Also a sentence for each correction that cannot be used: of a record that does
        not exist, of another answer, or by data that does not follow the schema.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is no correction; names file and line.
    """
    records = {(record.file, record.page): record for record in results.records}
    found: Corrections = {}
    refused = []
    # Not `splitlines`: a text may hold other ends of lines than this one.
    for number, line in enumerate(read_text(file, _MOST_BYTES).split("\n"), 1):
        if not line:
            continue
        try:
            correction = json.loads(line)
            key = correction["file"], correction["page"]
            record = records.get(key)
            if ("answer" in correction) == isinstance(correction.get("fields"), dict):
                raise ValueError
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is no correction.") from error
        if record is None:
            name = Record(*key)
            refused.append(f"{name}: there is no record that could be corrected.")
        elif correction.get("answer_sha256") != record.digest:
            refused.append(f"{record}: the answer is another than the corrected one.")
        elif problem := _problem(corrected(record, correction), results):
            refused.append(f"{record}: {problem}")
        else:
            found[key] = correction
    return found, refused


def corrected(record: Record, correction: dict[str, Any]) -> Any:
    """The corrected answer of a record."""
    if "answer" in correction:
        return correction["answer"]
    old = record.answer if isinstance(record.answer, dict) else {}
    return old | correction["fields"]


def _problem(answer: Any, results: Results) -> str:
    if results.schema is None:
        return ""
    import jsonschema

    try:
        jsonschema.validate(answer, results.schema)
    except jsonschema.ValidationError as error:
        return f"the correction does not follow the schema: {error.message[:200]}"
    return ""


def apply(results: Results, corrections: Corrections) -> None:
    """Put corrected answers in the place of those of the model."""
    for record in results.records:
        if correction := corrections.get((record.file, record.page)):
            record.answer = corrected(record, correction)
            record.error, record.cut, record.cer = None, None, None
            record.blank, record.corrected = False, True
