"""A folder of mail as it may come to an office, drawn, with plausible answers.

`answers.jsonl` has what `nemotron-vl read` could have written about it.
"""

import hashlib
import json
from pathlib import Path

from .documents import DOCUMENTS

_ANSWERS = Path(__file__).with_name("answers.jsonl")


def write_mail(folder: Path) -> Path:
    """Draw the documents and write the records of their answers.

    Args:
        folder: Gets the documents in its folder ``mail``.

    Returns:
        The file of records.
    """
    for name, draw in DOCUMENTS.items():
        file = folder / "mail" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw()
        if isinstance(drawn, bytes):
            file.write_bytes(drawn)
        else:
            drawn.save(file)
    head, *records = map(json.loads, _ANSWERS.read_text().splitlines())
    head["root"] = str(folder / "mail")
    for record in records:
        content = (folder / "mail" / record["file"]).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        record["source"] = {"bytes": len(content), "sha256": digest}
    out = folder / "answers.jsonl"
    out.write_text("".join(json.dumps(line) + "\n" for line in (head, *records)))
    return out
