# SPDX-License-Identifier: Apache-2.0
"""vLLM's in-tree model reads and is measured, in a process without this plugin.

It runs the checkpoint's code, so `run_in_tree` is called only with a user's consent.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ..checkpoints.files import write_json
from .documents import draw_documents, draw_numbers
from .engines import Run, engine_options
from .processes import run_program

# Only this package's model knows them.
_OURS = ("additional_config", "enable_mm_embeds")


def run_in_tree(checkpoint: Path, run: Run, numbers: bool, count: int) -> dict:
    """Run this file in another process.

    Args:
        checkpoint: Folder. Its code runs.
        run: How the engine runs.
        numbers: Whether to ask about numbers instead of documents.
        count: Number of questions.

    Returns:
        ``reading`` and ``speed``, or ``error`` with the end of what it printed.
    """
    options = engine_options(checkpoint, run)
    options = {name: options[name] for name in options.keys() - {*_OURS}}
    task: dict[str, Any] = {"model": str(checkpoint), "options": options}
    task |= {"numbers": numbers, "count": count}
    return run_program(__name__, task, VLLM_PLUGINS="")


def _main(task: dict[str, Any]) -> None:
    from vllm import LLM

    from .reading import ask_engine, read
    from .speed import measure

    llm = LLM(task["model"], trust_remote_code=True, **task["options"])
    draw = draw_numbers if task["numbers"] else draw_documents
    reading = read(ask_engine(llm), draw(task["count"])).as_dict()
    write_json(Path(task["out"]), {"reading": reading, "speed": measure(llm)})


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
