# SPDX-License-Identifier: Apache-2.0
"""A whole verification: the reference, then each engine, then reading and speed."""

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from ....assets.nemotron_vl import tiny_checkpoint
from ....config.nemotron_vl_names import plugin_version
from ..checkpoint_files import read_json
from .comparison import compare
from .documents import Question, draw_documents, draw_numbers
from .engines import Plan, running_engine
from .expected import write_expected_elsewhere
from .in_tree import run_in_tree
from .pictures import compared_pictures
from .reading import ask_engine, read
from .speed import measure
from .stages import DTYPES, Row, worst, wrong_stages

if TYPE_CHECKING:
    from vllm import LLM

PARTS = ("compare", "read", "measure")


class Request(NamedTuple):
    """What to verify.

    Args:
        checkpoint: Folder.
        parts: Some of `PARTS`.
        dtypes: In which vLLM and the reference are compared.
        engines: Some of `ENGINES`, or ``None`` for all that the machine allows.
        pictures: Names of the images that are compared, or ``None`` for all.
        questions: Number of questions about documents.
        numbers: Whether to ask what the embedded checkpoint was trained for.
            ``None``: whether it is that checkpoint.
        in_tree: Whether vLLM's in-tree model reads and is measured, too. It runs the
            checkpoint's code.
    """

    checkpoint: Path
    parts: Sequence[str] = PARTS
    dtypes: Sequence[str] = DTYPES
    engines: Sequence[str] | None = None
    pictures: list[str] | None = None
    questions: int = 100
    numbers: bool | None = None
    in_tree: bool = False

    @property
    def asks_numbers(self) -> bool:
        if self.numbers is not None:
            return self.numbers
        return self.checkpoint.resolve() == Path(tiny_checkpoint()).resolve()

    def documents(self) -> list[Question]:
        draw = draw_numbers if self.asks_numbers else draw_documents
        return draw(self.questions)

    def images(self) -> dict[str, Image.Image]:
        """The images that are compared, by name."""
        config = read_json(str(self.checkpoint), "config.json")
        return compared_pictures(config["force_image_size"], self.pictures)


def verify(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything that a request asks for.

    Args:
        request: What to verify.
        say: Gets a line before each step.

    Returns:
        Data for JSON: ``model``, ``environment``, ``ok``, ``wrong_stages``,
        ``rows`` (the largest error of each stage), ``not_run``, and ``reading``,
        ``speed`` and ``in_tree`` if they were asked for.

    Raises:
        ValueError: There is no such image, or the reference cannot load the
            checkpoint.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = request.dtypes
    plan = Plan.make(request.checkpoint, dtypes, request.engines, device)
    results: dict[str, Any] = {
        "model": str(request.checkpoint),
        "environment": _environment(device),
        "not_run": plan.not_run,
    }
    rows: list[Row] = []
    images = request.images() if "compare" in request.parts else {}
    for dtype in dict.fromkeys(run.dtype for run in plan.runs):
        runs = [run for run in plan.runs if run.dtype == dtype]
        if not images:
            runs = [run for run in runs if run == plan.served]
        if not runs:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if images:
                say(f"Reference in {dtype} ...")
                write_expected_elsewhere(
                    request.checkpoint, dtype, device, images, folder
                )
            for run in runs:
                say(f"vLLM in {run.dtype}, {run.engine} ...")
                with running_engine(request.checkpoint, run) as llm:
                    if images:
                        rows += compare(llm, dtype, run.engine, images, folder)
                    if run == plan.served:
                        results |= _serve(llm, request, say)
    results["rows"] = [row.as_dict() for row in worst(rows)]
    results["wrong_stages"] = wrong_stages(rows)
    if request.in_tree and plan.served:
        say("vLLM's in-tree model ...")
        results["in_tree"] = run_in_tree(
            request.checkpoint, plan.served, request.asks_numbers, request.questions
        )
        if "error" in results["in_tree"]:
            lines = results["in_tree"]["error"].splitlines()
            plan.not_run.append(f"in-tree: {lines[-1] if lines else 'no message'}")
    failed = "error" in results.get("in_tree", {})
    results["ok"] = bool(plan.runs) and not results["wrong_stages"] and not failed
    return results


def captions(
    request: Request, results: dict[str, Any]
) -> Iterator[tuple[str, Image.Image]]:
    """The images of a verification, with what to know about each."""
    if "compare" in request.parts:
        yield from request.images().items()
    if "reading" in results:
        wrong = {w["number"]: w["answer"] for w in results["reading"]["wrong"]}
        yield from _asked(request.documents(), wrong)


def _asked(
    questions: Iterable[Question], wrong: dict[int, str]
) -> Iterator[tuple[str, Image.Image]]:
    for number, question in enumerate(questions):
        found = f"wrong: {wrong[number]!r}" if number in wrong else "right"
        for picture in question.pictures:
            yield f"{number}. {question.text} {question.answer!r}: {found}", picture


def _serve(llm: "LLM", request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "read" in request.parts:
        say(f"Reading {request.questions} documents ...")
        found["reading"] = read(ask_engine(llm), request.documents()).as_dict()
    if "measure" in request.parts:
        say("Measuring ...")
        found["speed"] = measure(llm)
    return found


def _environment(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name()
    return {
        "device": name,
        "devices": torch.cuda.device_count() if device == "cuda" else os.cpu_count(),
        "vllm-nemotron-vl": plugin_version(),
        **{name: version(name) for name in ("vllm", "torch", "transformers", "timm")},
    }
