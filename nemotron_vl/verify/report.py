# SPDX-License-Identifier: Apache-2.0
"""The results of a verification: as text, and as a page of HTML with the images."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from .images import png_url
from .stages import BOUNDS

_WIDTH = 320  # of an image on the page, in pixels
_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: left }
td.bad { background: #fdd } figure { display: inline-block; margin: .5em }
figcaption { font-size: 85%; max-width: 320px } img { border: 1px solid #ccc }
"""

Table = tuple[Sequence[str], list[list[str]]]


def verdict(results: Mapping[str, Any]) -> str:
    """What is wrong first, or that nothing is, and what that does not prove."""
    files = results.get("files") or {}
    wrong = [f"the file {file['file']}" for file in files.get("differ", ())]
    wrong += results["wrong_stages"]
    own = results.get("remote_code") or {"wrong": [], "rows": []}
    found = [f"Wrong: {', '.join(wrong)}."] if wrong else []
    if own["wrong"]:
        others = " and ".join(f"another {stage}" for stage in own["wrong"])
        found.append(f"The checkpoint's own code computes {others}.")
    if found:
        return " ".join(found)
    if results["problems"]:
        return results["problems"][0]
    if not results["complete"]:
        return "Not complete."
    if results["failed"]:
        return "Something that was asked for failed, see below."
    sentences = []
    if own["rows"]:
        sentences.append("The checkpoint's own code and the reference agree.")
    if results["rows"]:
        sentences.append("vLLM and the reference agree in all stages.")
    same, others = files.get("same", []), files.get("not_compared", [])
    if same and not others:
        sources = ", ".join(files["sources"])
        sentences.append(f"The files are the published ones, by {sources}.")
    elif same:
        sentences.append(
            f"Of the files, {len(same)} are as published and {len(others)} were not "
            "compared."
        )
    unknown = any(file["file"].endswith(".safetensors") for file in others)
    if results["rows"] and (unknown or not same):
        sentences.append(
            "Both read the same files, so this proves the code and not the weights."
        )
    return " ".join(sentences) or "Nothing was compared."


def stage_table(results: Mapping[str, Any]) -> Table:
    """Largest error of each dtype, engine and stage, in the order of the stages."""
    order = [*BOUNDS]
    rows = sorted(
        [*results["rows"], *_remote(results, "rows")],
        key=lambda row: (row["dtype"], row["engine"], order.index(row["stage"])),
    )
    cells = [
        [
            row["dtype"],
            row["engine"],
            row["stage"],
            "not finite" if row["error"] is None else f"{row['error']:.2g}",
            f"{row['bound']:.2g}",
            row["image"],
            "yes" if row["ok"] else "NO",
        ]
        for row in rows
    ]
    head = ("dtype", "engine", "stage", "error", "bound", "worst image", "within")
    return head, cells


def code_table(results: Mapping[str, Any]) -> Table:
    """The checkpoint's own code that ran."""
    rows = [
        [code["repository"], code["commit"] or "none known", ", ".join(code["files"])]
        for code in _remote(results, "code")
    ]
    return ("repository", "commit", "files"), rows


def _remote(results: Mapping[str, Any], key: str) -> list[Any]:
    return (results.get("remote_code") or {}).get(key, [])


def file_table(results: Mapping[str, Any]) -> Table:
    """Each file, and whether it is the published one."""
    files = results.get("files") or {"same": [], "differ": [], "not_compared": []}
    rows = [[name, "yes", ""] for name in files["same"]]
    rows += [
        [
            file["file"],
            "NO",
            f"its digest is {file['digest']}, but {file['published']} in "
            f"{file['source']}"
            if file["digest"]
            else f"it is missing; {file['source']} has it",
        ]
        for file in files["differ"]
    ]
    rows += [[f["file"], "not compared", f["reason"]] for f in files["not_compared"]]
    return ("file", "as published", ""), rows


def reading_table(results: Mapping[str, Any]) -> Table:
    rows = []
    for side, reading in _readings(results):
        for kind, found in reading["by_kind"].items():
            rows.append([side, kind, f"{found['right']} of {found['questions']}"])
        count = round(reading["accuracy"] * reading["questions"])
        rows.append([side, "all", f"{count} of {reading['questions']}"])
    return ("model", "documents", "right"), rows


def wrong_answers(results: Mapping[str, Any]) -> Table:
    rows = [
        [side, str(w["number"]), w["question"], repr(w["right"]), repr(w["answer"])]
        for side, reading in _readings(results)
        for w in reading["wrong"]
    ]
    return ("model", "number", "question", "right", "answer"), rows


def speed_table(results: Mapping[str, Any]) -> Table:
    rows = [
        [
            side,
            f"{speed['first_token_ms']:.0f} ms",
            f"{speed['tokens_per_s']:.1f}",
            f"{speed['pages_per_s']:.2f}",
            f"{speed['batch_tokens_per_s']:.1f}",
            ", ".join(f"{memory:.1f} GB" for memory in speed["memory_gb"]),
        ]
        for side, speed in _sides(results, "speed")
    ]
    head = ("model", "first token", "tokens/s, one page", "pages/s, many at once")
    return (*head, "tokens/s, many at once", "memory of each worker"), rows


def _sides(results: Mapping[str, Any], key: str) -> Iterable[tuple[str, dict]]:
    if results.get(key):
        yield "this package", results[key]
    if results.get("in_tree", {}).get(key):
        yield "in-tree", results["in_tree"][key]


def _readings(results: Mapping[str, Any]) -> Iterable[tuple[str, dict]]:
    return _sides(results, "reading")


def _tables(results: Mapping[str, Any]) -> list[tuple[str, Table]]:
    return [
        ("Files", file_table(results)),
        ("The checkpoint's own code", code_table(results)),
        ("Stages", stage_table(results)),
        ("Reading", reading_table(results)),
        ("Wrong answers", wrong_answers(results)),
        ("Speed", speed_table(results)),
    ]


def _reasons(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What speaks against the model, what failed and what did not run."""
    found = [
        ("Problems", results["problems"]),
        ("About the checkpoint's own code", _remote(results, "messages")),
        ("Failed", results["failed"]),
        ("Not run", results["not_run"]),
    ]
    return [(title, reasons) for title, reasons in found if reasons]


def as_text(results: Mapping[str, Any]) -> str:
    """Tables in Markdown, ready for an issue or a model card."""
    lines = [f"# {results['model']}", "", verdict(results), ""]
    lines += [f"{name}: {value}" for name, value in results["environment"].items()]
    for title, (head, rows) in _tables(results):
        if rows:
            lines += ["", f"## {title}", ""]
            lines += _markdown(head, rows)
    for title, reasons in _reasons(results):
        lines += ["", f"## {title}", ""]
        lines += [f"- {reason}" for reason in reasons]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: list[list[str]]) -> list[str]:
    cleaned = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [[*head], *cleaned]]
    lines.insert(1, "|---" * len(head) + "|")
    return lines


def as_html(
    results: Mapping[str, Any], images: Iterable[tuple[str, Image.Image]]
) -> str:
    """A page that needs no other file.

    Args:
        results: Results of the verification.
        images: Captions and images.
    """
    title = html.escape(f"Verification of {results['model']}")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style><h1>{title}</h1>",
        f'<p id="verdict"><strong>{html.escape(verdict(results))}</strong></p>',
        _html_table(
            ("", "of this run"),
            [[k, str(v)] for k, v in results["environment"].items()],
        ),
    ]
    for heading, (head, rows) in _tables(results):
        if rows:
            parts += [f"<h2>{heading}</h2>", _html_table(head, rows)]
    for heading, reasons in _reasons(results):
        items = "".join(f"<li>{html.escape(reason)}" for reason in reasons)
        parts.append(f"<h2>{heading}</h2><ul>{items}</ul>")
    parts.append("<h2>Images</h2>")
    parts += [_figure(caption, image) for caption, image in images]
    return "\n".join(parts) + "</html>\n"


def _html_table(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(name)}</th>" for name in head)]
    for row in rows:
        lines.append("<tr>")
        for cell in row:
            mark = ' class="bad"' if cell == "NO" else ""
            lines.append(f"<td{mark}>{html.escape(cell)}</td>")
    return "".join(lines) + "</table>"


def _figure(caption: str, image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_WIDTH, _WIDTH))
    name = html.escape(caption)
    return (
        f'<figure><img src="{png_url(small)}" alt="{name}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
