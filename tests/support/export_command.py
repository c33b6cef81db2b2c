"""Records of `nemotron-vl read`, and the command that exports them."""

import json
from pathlib import Path
from typing import Any

from nemotron_vl.main import main

# Texts that run in a browser if they become HTML or end a script.
HOSTILE = (
    "<img src=x onerror=hit()>",
    "</script><script>hit()</script>",
    "\u2028hit()//'\"`${hit()}",
    "javascript:hit()",
)


def write(file: Path, *records: dict[str, Any], **settings: Any) -> Path:
    """A file of records with a head."""
    head = {"settings": settings, "root": settings.pop("root", None)}
    file.write_text("".join(json.dumps(line) + "\n" for line in (head, *records)))
    return file


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def export(records: Path, kind: str, out: Path, *options: str) -> int:
    return main(["export", str(records), "--to", kind, "--out", str(out), *options])
