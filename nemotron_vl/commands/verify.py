# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl verify``: compare vLLM with the reference, stage by stage."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ..checkpoints.files import check_folder, check_hub_name, code_repositories
from ..printable import show
from ..verify.stages import DTYPES, ENGINES, PARTS
from .arguments import number

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    # On a CPU, vLLM would take most of the memory for its cache.
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # On a GPU, Triton's kernels would round float32 to TensorFloat-32.
    "TRITON_F32_DEFAULT": "ieee",
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="compare vLLM with an independent reference, read and measure",
        description="Compares the files with their published digests. Runs an "
        "independent implementation on timm and transformers, then vLLM, and compares "
        "pixels, prompt, tower, connector, logits and tokens. Then vLLM reads drawn "
        "documents and is measured. Exits with 1 if a file or a stage is wrong, if the "
        "model reads nothing, or if something failed. The two sides are not in memory "
        "at the same time.",
    )
    parser.add_argument("model", help="folder of a checkpoint or its name on the hub")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nemotron-vl-verify"),
        metavar="FOLDER",
        help="for results.json, results.md and report.html (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print results.json")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="(default: all; with --against remote-code only files)",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        help="(default: all that fit into the memory)",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        help="ways to run vLLM (default: all that the machine allows; on CPUs eager)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="NAME",
        help="compare only these images (default: all; a wrong name lists them)",
    )
    parser.add_argument(
        "--questions",
        type=number(),
        default=100,
        metavar="N",
        help="number of questions about documents (default: %(default)s)",
    )
    parser.add_argument(
        "--published",
        metavar="NAME",
        help="compare the files with those that the hub lists for owner/name or "
        "owner/name@revision (default: with what the hub's cache knows)",
    )
    parser.add_argument(
        "--against",
        choices=["in-tree", "remote-code"],
        help="in-tree: vLLM's in-tree model also reads and is measured, with the "
        "checkpoint's code. remote-code: the tower and the connector of the "
        "checkpoint's own code are compared with the reference",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let --against run the checkpoint's code; nothing else does",
    )
    parser.add_argument(
        "--code-revision",
        metavar="COMMIT",
        help="of the other repositories whose code --against remote-code runs "
        "(default: the main branch, as the checkpoint loads it)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if not find_spec("timm"):
        raise RuntimeError(
            "`nemotron-vl verify` needs timm: pip install timm (the extra "
            '"verify" of this package)'
        )
    remote_code = args.against == "remote-code"
    if args.against:
        repositories = " and of ".join(code_repositories(args.model))
        if not args.trust_remote_code:
            raise ValueError(
                f"--against {args.against} runs code of {repositories}. Read that "
                "code, then add --trust-remote-code."
            )
    if args.code_revision and not remote_code:
        raise ValueError("--code-revision needs --against remote-code.")
    parts = args.parts or (("files",) if remote_code else PARTS)
    if args.against == "in-tree" and {*parts}.isdisjoint({"read", "measure"}):
        raise ValueError("--against in-tree needs --parts read, measure, or both.")
    checkpoint = _folder(args.model, with_code=args.against is not None)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from ..verify.report import as_html
    from ..verify.verification import Request, captions, verify

    request = Request(
        checkpoint=checkpoint,
        parts=parts,
        dtypes=args.dtype,
        engines=args.engines,
        images=args.images,
        questions=args.questions,
        published=args.published,
        in_tree=args.against == "in-tree",
        remote_code=remote_code,
        code_revision=args.code_revision,
    )
    report = args.out / "report.html"

    def save(results: dict) -> None:
        results["model"] = args.model
        report.unlink(missing_ok=True)  # of an earlier run
        _write(results, args.out)

    with _output_to_stderr():
        results = verify(request, partial(show, file=sys.stderr), save)
    data, text = _write(results, args.out)
    report.write_text(as_html(results, captions(request, results)))
    show(data if args.json else text)
    show(f"Report: {report}", sys.stderr)
    return 0 if results["ok"] else 1


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """vLLM and its processes log to standard output, which `--json` keeps for JSON."""
    sys.stdout.flush()
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(output, 1)
        os.close(output)


def _write(results: dict, out: Path) -> tuple[str, str]:
    """Write the results as JSON and as text."""
    from ..verify.report import as_text

    data, text = json.dumps(results, indent=2, allow_nan=False), as_text(results)
    (out / "results.json").write_text(data + "\n")
    (out / "results.md").write_text(text + "\n")
    return data, text


def _folder(model: str, with_code: bool) -> Path:
    """The checkpoint's folder; from the hub, its data files, and its code if asked."""
    if Path(model).is_dir():
        check_folder(model)
        return Path(model)
    check_hub_name(model)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.safetensors", *(["*.py"] if with_code else [])]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except OSError as error:
        raise OSError(
            f"There is no folder {model}, and it cannot be loaded from the hub: {error}"
        ) from error
