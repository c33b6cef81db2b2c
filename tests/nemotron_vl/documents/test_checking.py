"""The files of the page for checking. No browser is needed to see what they hold."""

import json
import re

from PIL import Image

from nemotron_vl.documents import checking
from nemotron_vl.documents.results import read_records
from support.documents import pdf, solid
from support.export_command import HOSTILE, export, write


def data_of(out):
    """What the script of an exported page holds."""
    script = (out / checking.RECORDS).read_text("ascii")
    assert "<" not in script.replace("\\u003c", "")
    _, line = script.splitlines()
    text = re.fullmatch(r"const EXPORT = JSON.parse\((.*)\);", line)[1]
    return json.loads(json.loads(text))


def test_the_scripts_make_no_html_of_texts():
    for asset in checking._ASSETS.iterdir():
        text = asset.read_text()
        assert not re.search(
            r"(inner|outer)HTML|insertAdjacent|document\.write|eval\(", text
        )
        assert not re.search(r"https?:|\bon\w+=\"|style=\"", text)


def test_what_a_script_holds_cannot_end_it(tmp_path):
    texts = "".join(HOSTILE)
    out = tmp_path / "out"
    records = write(tmp_path / "r.jsonl", {"file": "a", "page": 1, "answer": texts})
    assert export(records, "html", out) == 0
    (shown,) = data_of(out)["records"]
    assert shown["answer"] == texts
    assert shown["digest"] == read_records(records).records[0].digest


def test_each_page_has_an_image_of_its_own(tmp_path):
    colours = ("red", "lime", "blue")
    (tmp_path / "a.pdf").write_bytes(pdf(map(solid, colours)))
    pages = [{"file": "a.pdf", "page": n, "answer": "x"} for n in (1, 2, 3)]
    records = write(tmp_path / "r.jsonl", *pages, root=str(tmp_path))
    out = tmp_path / "out"
    assert export(records, "html", out) == 0
    levels = []
    for record in data_of(out)["records"]:
        (page,) = record["images"]
        image = Image.open(out / page["image"]).convert("RGB")
        levels.append(image.getpixel((image.width // 2, image.height // 2)))
    assert [level.index(max(level)) for level in levels] == [0, 1, 2]
