"""The README's commands from a folder of 40 documents to Markdown, CSV and a page, and
those that find a page in it."""

import contextlib
import csv
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from nemotron_vl.main import main
from support.servers import forked_servers

ROOT = Path(__file__).parents[2]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell's lines, with their variables."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", "").splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        else:
            yield shlex.split(Template(line).safe_substitute(variables))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """What the commands have written."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "nemotron_vl"):
        (folder / name).symlink_to(ROOT / name)
    section = (ROOT / "README.md").read_text().partition("## Read a folder")[2]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[:2]
    draw, *others = commands("".join(blocks))
    assert draw[0] == ".venv/bin/python"
    subprocess.run([sys.executable, *draw[1:]], cwd=folder, check=True)
    with pytest.MonkeyPatch.context() as patch, forked_servers():
        patch.chdir(folder)
        # Its server would be a child of setpriv, and so no fork.
        patch.setattr(shutil, "which", lambda name: None)
        for number, (program, *arguments) in enumerate(others):
            assert program == ".venv/bin/nemotron-vl"
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert main(arguments) == 0
            said = folder / "build" / f"{number} {arguments[0]}.txt"
            said.write_text(printed.getvalue())
    return folder / "build"


def rows(file: Path) -> list[dict]:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        return [*csv.DictReader(opened)]


def test_each_page_is_read(build):
    truth = rows(build / "folder/texts.csv")
    assert len({row["file"] for row in truth}) == 40 and len(truth) == 56
    assert len({Path(row["file"]).suffix for row in truth}) == 12
    read = {(row["document"], row["page"]): row["answer"] for row in table(build)}
    assert read == {(row["file"], row["page"]): row["text"] for row in truth}


def table(build: Path) -> list[dict]:
    return rows(build / "answers.csv")


def test_each_document_is_a_file(build):
    files = {*(build / "markdown").rglob("*.md")}
    assert len(files) == 40
    first = next(row for row in table(build) if row["document"].endswith("00.pdf"))
    assert first["answer"] in (build / "markdown/invoices/00.pdf.md").read_text()


def test_each_page_can_be_checked(build):
    assert (build / "checking/index.html").exists()
    assert len([*(build / "checking/images").iterdir()]) == 56


def test_a_page_is_found_ranked_and_asked_about(build):
    truth = rows(build / "folder/texts.csv")
    (wanted,) = [row["file"] for row in truth if row["text"] == "$73.11"]
    listed, asked = [file.read_text() for file in sorted(build.glob("* find.txt"))]
    head, first, *_ = listed.splitlines()
    assert head.split() == ["rank", "score", "cosine", "page"]
    assert wanted in first
    assert wanted in asked.splitlines()[1]
    assert "$73.11" in asked.partition("\n\n")[2]
