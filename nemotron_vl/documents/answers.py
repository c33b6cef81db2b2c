# SPDX-License-Identifier: Apache-2.0
"""What a server's answer is: data or text, whole or cut, like the page's own text."""

import re
from collections.abc import Iterator
from typing import Any

from .requests import Question
from .schemas import enumerated

# An answer repeats itself if its end is the same piece of at most so many characters,
# so often, and takes so many characters in all.
_MOST_PIECE = 400
_REPEATED = 4
_LEAST_REPEATED = 80

_BLANKS = (
    "It is mostly blanks; the server's option --structured-outputs-config "
    '\'{"backend": "xgrammar", "disable_any_whitespace": true}\' forbids them.'
)


def record_of(question: Question, text: str, finish_reason: str | None) -> dict:
    """``answer``, ``finish_reason``, and if need be ``cut`` and ``error`` of a record.

    Args:
        question: What was asked.
        text: The answer as it came.
        finish_reason: Of the server; ``length`` if the answer was cut.
    """
    record: dict[str, Any] = {"answer": text, "finish_reason": finish_reason}
    if finish_reason == "length":
        limit = f"{question.max_tokens} tokens"
        record["cut"] = (
            f"It repeats itself up to the limit of {limit}."
            if repeats(text)
            else f"It was cut after {limit}."
        )
    hint = [record["cut"]] if "cut" in record else []
    try:
        record["answer"] = question.parse(text)
        if hint and question.schema is not None:  # 12 may be the start of 1200
            record["error"] = " ".join(["The answer may not be complete.", *hint])
    except ValueError as error:
        if sum(map(str.isspace, text)) > len(text) // 2:
            hint.append(_BLANKS)
        record["error"] = " ".join([shortened(str(error)), *hint])
    return record


def repeats(text: str) -> bool:
    """Whether the end of a text is one piece again and again."""
    for size in range(1, min(_MOST_PIECE, len(text) // _REPEATED) + 1):
        times = max(_REPEATED, -(-_LEAST_REPEATED // size))
        if text.endswith(text[-size:] * times):
            return True
    return False


def is_empty(answer: Any) -> bool:
    """Whether an answer says nothing: no text, or data without a value."""
    if isinstance(answer, dict):
        return all(map(is_empty, answer.values()))
    if isinstance(answer, list):
        return all(map(is_empty, answer))
    return answer is None or (isinstance(answer, str) and not answer.strip())


def compared(
    answer: Any, layer: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    """How far an answer differs from the text that is in the PDF.

    Args:
        answer: Text or data.
        layer: The PDF's own text.
        schema: Of the data.

    Returns:
        ``cer``, the character error rate: the characters to insert, delete or replace,
        by the ``characters`` of the PDF. White space of any kind and length is equal.
        Of data, both are about the values: ``cer`` is the share of their letters and
        digits that stand in values which the PDF does not have. Dates and values that
        the schema lists do not count, because pages write them in other forms.
    """
    if schema is not None:
        listed = {*map(str, enumerated(schema))}
        values = {text for text in _values(answer) if text not in listed}
        values = {*filter(None, map(_plain, values))}
        text = _plain(layer)
        missing = sum(len(value) for value in values if value not in text)
        total = sum(map(len, values))
        cer = round(missing / total, 4) if total else 0.0
        return {"cer": cer, "characters": total}
    import jiwer

    expected, found = (re.sub(r"\s+", " ", text).strip() for text in (layer, answer))
    if not expected:
        return {"cer": float(bool(found)), "characters": 0}
    return {
        "cer": round(jiwer.cer(expected, found), 4),
        "characters": len(expected),
    }


def _values(answer: Any) -> Iterator[str]:
    """Texts and numbers of data."""
    if isinstance(answer, (dict, list)):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from _values(part)
    elif answer is not None and not isinstance(answer, bool):
        text = str(answer).removesuffix(".0")
        if not _DATE.fullmatch(text):
            yield text


def _plain(text: str) -> str:
    """Letters and digits, in lower case: 1.388,02 as 1388.02."""
    return "".join(filter(str.isalnum, text.casefold()))


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T.*)?")
_MOST_SHOWN = 1000  # characters of a message


def shortened(text: str) -> str:
    """The beginning of a message that may hold all of an answer."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."
