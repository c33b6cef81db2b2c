# SPDX-License-Identifier: Apache-2.0
"""A whole verification: files, the checkpoint's own code, the reference and engines."""

import contextlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from vllm_nemotron_vl.config.nemotron_vl_names import plugin_version

from ..checkpoints.embedded import is_embedded
from ..checkpoints.files import is_quantised_checkpoint, read_json
from .comparison import compare
from .documents import Question, draw_documents, draw_numbers
from .engines import Plan, running_engine
from .expected import write_expected_elsewhere
from .images import compared_images
from .in_tree import run_in_tree
from .plausibility import logits_problems, reading_problems
from .published import compare_files
from .reading import ask_engine, read
from .remote_comparison import compare_remote_code
from .speed import measure
from .stages import DTYPES, PARTS, Row, worst, wrong_stages

if TYPE_CHECKING:
    from vllm import LLM


class Request(NamedTuple):
    """What to verify.

    Args:
        checkpoint: Folder.
        parts: Some of `PARTS`.
        dtypes: In which vLLM and the reference are compared.
        engines: Some of `ENGINES`, or ``None`` for all that the machine allows.
        images: Names of the images that are compared, or ``None`` for all.
        questions: Number of questions about documents.
        numbers: Whether to ask what the embedded checkpoint was trained for.
            ``None``: whether it is a copy of that checkpoint.
        published: Name on the hub of whose files the folder should hold copies.
        in_tree: Whether vLLM's in-tree model reads and is measured, too. It runs the
            checkpoint's code.
        remote_code: Whether the checkpoint's own code is compared with the reference.
        code_revision: Revision of that code in other repositories; ``None`` for the
            main branch.
    """

    checkpoint: Path
    parts: Sequence[str] = PARTS
    dtypes: Sequence[str] = DTYPES
    engines: Sequence[str] | None = None
    images: list[str] | None = None
    questions: int = 100
    numbers: bool | None = None
    published: str | None = None
    in_tree: bool = False
    remote_code: bool = False
    code_revision: str | None = None

    @property
    def asks_numbers(self) -> bool:
        if self.numbers is not None:
            return self.numbers
        return is_embedded(self.checkpoint)

    def documents(self) -> list[Question]:
        draw = draw_numbers if self.asks_numbers else draw_documents
        return draw(self.questions)

    def compared(self) -> dict[str, Image.Image]:
        """The images that are compared, by name."""
        config = read_json(str(self.checkpoint), "config.json")
        return compared_images(config["force_image_size"], self.images)


def verify(
    request: Request,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run everything that a request asks for.

    What fails is noted, and the rest runs.

    Args:
        request: What to verify.
        say: Gets a line before each step.
        save: Gets the results so far, at the start and after each engine.

    Returns:
        Data for JSON: ``model``, ``environment``, ``complete``, ``ok``,
        ``wrong_stages``, ``problems`` (signs of a model that reads nothing),
        ``failed``, ``not_run``, ``rows`` (the largest error of each stage), and
        ``files``, ``reading``, ``speed``, ``in_tree`` and ``remote_code`` if they were
        asked for.

    Raises:
        ValueError: There is no such image, the machine does not allow an engine, or
            the reference cannot load the checkpoint.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan.make(request.checkpoint, request.dtypes, request.engines, device)
    compares = "compare" in request.parts
    if compares:
        _refuse_quantised(request.checkpoint)
    images = request.compared() if compares or request.remote_code else {}
    engines = {*request.parts} - {"files"}
    not_run = plan.not_run if engines else []
    rows: list[Row] = []
    failed: list[str] = []
    problems: list[str] = []
    results: dict[str, Any] = {
        "model": str(request.checkpoint),
        "environment": _environment(device),
        "complete": False,
        "ok": False,
        "wrong_stages": [],
        "problems": problems,
        "failed": failed,
        "not_run": not_run,
        "rows": [],
    }
    if "files" in request.parts:
        say("Files ...")
        with _noted(failed, "files"):
            results["files"] = compare_files(request.checkpoint, request.published)
    save(results)
    remote: dict[str, Any] = {"rows": [], "wrong": []}
    if request.remote_code:
        with _noted(failed, "remote code"):
            remote = results["remote_code"] = compare_remote_code(
                request.checkpoint, images, request.code_revision, device, say
            )
            failed += remote.pop("failed")
        save(results)
    for dtype in dict.fromkeys(run.dtype for run in plan.runs if engines):
        runs = [run for run in plan.runs if run.dtype == dtype]
        if not compares:
            runs = [run for run in runs if run == plan.served]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if compares:
                say(f"Reference in {dtype} ...")
                with _noted(failed, f"{dtype}, reference"):
                    _write_expected(request.checkpoint, dtype, device, images, folder)
            # Without the reference's last file, there is nothing to compare with.
            compared = compares and len([*folder.iterdir()]) == len(images)
            if compared:
                found = logits_problems(map(load_file, sorted(folder.iterdir())))
                problems += [f"{dtype}: {problem}" for problem in found]
            for run in runs:
                if not compared and run != plan.served:
                    continue
                say(f"vLLM in {run.dtype}, {run.engine} ...")
                with (
                    _noted(failed, f"{run.dtype}, {run.engine}"),
                    running_engine(request.checkpoint, run) as llm,
                ):
                    if compared:
                        rows += compare(llm, dtype, run.engine, images, folder, not_run)
                    if run == plan.served:
                        results |= _serve(llm, request, say, problems)
                results["rows"] = [row.as_dict() for row in worst(rows)]
                results["wrong_stages"] = wrong_stages(rows)
                save(results)
    if request.in_tree and plan.served:
        say("vLLM's in-tree model ...")
        results["in_tree"] = run_in_tree(
            request.checkpoint, plan.served, request.asks_numbers, request.questions
        )
        if "error" in results["in_tree"]:
            lines = results["in_tree"]["error"].splitlines()
            failed.append(f"in-tree: {lines[-1] if lines else 'no message'}")
    results["complete"] = True
    files = results.get("files", {"differ": [], "same": []})
    ran = plan.runs if engines else files["same"] or remote["rows"]
    wrong = results["wrong_stages"] or remote["wrong"] or files["differ"]
    results["ok"] = bool(ran) and not (wrong or problems or failed)
    return results


@contextlib.contextmanager
def _noted(failed: list[str], name: str) -> Iterator[None]:
    """Note what the block raises, except that the checkpoint cannot be used."""
    try:
        yield
    except (_Unusable, AssertionError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        failed.append(f"{name}: {type(error).__name__}: {lines[-1]}")


class _Unusable(ValueError):
    """A checkpoint that the reference cannot load, in any dtype."""


def _write_expected(checkpoint: Path, *arguments) -> None:
    try:
        write_expected_elsewhere(checkpoint, *arguments)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        message = f"the reference cannot load {checkpoint}: "
        message += f"{type(error).__name__}: {error}"
        raise _Unusable(message) from error


def _refuse_quantised(checkpoint: Path) -> None:
    if is_quantised_checkpoint(checkpoint):
        raise ValueError(
            f"{checkpoint} is quantised, and the reference reads only unquantised "
            "checkpoints. Add --parts files read measure."
        )


def captions(
    request: Request, results: dict[str, Any]
) -> Iterator[tuple[str, Image.Image]]:
    """The images of a verification, with what to know about each."""
    if "compare" in request.parts or request.remote_code:
        yield from request.compared().items()
    if "reading" in results:
        wrong = {w["number"]: w["answer"] for w in results["reading"]["wrong"]}
        yield from _asked(request.documents(), wrong)


def _asked(
    questions: Iterable[Question], wrong: dict[int, str]
) -> Iterator[tuple[str, Image.Image]]:
    for number, question in enumerate(questions):
        found = f"wrong: {wrong[number]!r}" if number in wrong else "right"
        for image in question.images:
            yield f"{number}. {question.text} {question.answer!r}: {found}", image


def _serve(
    llm: "LLM", request: Request, say: Callable[[str], None], problems: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "read" in request.parts:
        say(f"Reading {request.questions} documents ...")
        reading = read(ask_engine(llm), request.documents())
        found["reading"] = reading.as_dict()
        problems += reading_problems(reading)
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
