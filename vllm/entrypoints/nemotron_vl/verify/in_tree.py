# SPDX-License-Identifier: Apache-2.0
"""vLLM's in-tree model reads and is measured, in a process without this plugin.

It runs the checkpoint's code, so `run_in_tree` is called only with a user's consent.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from ..checkpoint_files import write_json
from .documents import draw_documents, draw_numbers
from .engines import Run, engine_options

# Only this package's model knows them.
_OURS = ("additional_config", "enable_mm_embeds")
_SECONDS = 1800


def run_in_tree(checkpoint: Path, run: Run, numbers: bool, count: int) -> dict:
    """Run this file in another process.

    Args:
        checkpoint: Folder. Its code runs.
        run: How the engine runs.
        numbers: Whether to ask about numbers instead of documents.
        count: Of the questions.

    Returns:
        ``reading`` and ``speed``, or ``error`` with the end of what it printed.
    """
    options = engine_options(checkpoint, run)
    options = {name: options[name] for name in options.keys() - {*_OURS}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        task: dict[str, Any] = {"model": str(checkpoint), "options": options}
        task |= {"out": str(out), "numbers": numbers, "count": count}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(task)],
            env={**os.environ, "VLLM_PLUGINS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            printed, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"It did not end in {_SECONDS} s."}
        finally:
            _end(process)
        if process.returncode or not out.exists():
            return {"error": "\n".join(printed.strip().splitlines()[-12:])}
        return json.loads(out.read_text())


def _end(process: subprocess.Popen) -> None:
    """End a process, if it still runs, and the engine that it started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(children, timeout=30)  # they hold the GPU's memory
        process.wait()


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
