"""The held-out images that Cairo draws, and the tables of the evaluation."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from drawn_text import Drawing, Question
from evaluate_tiny import EngineChoice
from tiny_reader import cairo_layout, tables, wrong
from tiny_reader.alike import in_common
from tiny_reader.cairo_painter import LEAST_CONTRAST, contrast_of, least_margin
from tiny_reader.held_out import STYLES, HeldOut, draw_held_out

try:
    import cairocffi  # noqa: F401
except (ImportError, OSError) as error:
    pytest.skip(f"Cairo draws the held-out images: {error}", allow_module_level=True)


MATPLOTLIB = Path(matplotlib.get_data_path(), "fonts/ttf")


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """A folder as tools/fonts.sh writes it, with fonts of matplotlib."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("held_out", "elsewhere"):
        shutil.copytree(MATPLOTLIB, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cairo_layout, "FAMILIES", ("DejaVu Sans", "DejaVu Serif"))
        patch.setattr(cairo_layout, "THIN", ("DejaVu Sans Mono",))
        patch.setattr(cairo_layout, "SEVEN_SEGMENT", ("cmtt10",))
        yield folder


def test_the_same_seed_draws_the_same_held_out_images(fonts):
    one, other = draw_held_out(fonts, 60), draw_held_out(fonts, 60)
    for a, b in zip(one, other, strict=True):
        assert a.facts == b.facts
        assert a.question.turns == b.question.turns
        for image, again in zip(a.question.images, b.question.images, strict=True):
            assert image.tobytes() == again.tobytes()
    assert len({item.facts["style"] for item in one}) > len(STYLES) / 2
    assert draw_held_out(fonts, 1, seed=1)[0].facts != one[0].facts


def test_held_out_images_have_ink_and_their_sizes(fonts):
    shapes = set()
    for item in draw_held_out(fonts, 100):
        assert 14 <= item.facts["height"] <= 140
        assert item.facts["contrast"] >= LEAST_CONTRAST
        assert item.facts["margin"] >= 0
        (width, height), layout = item.question.images[0].size, item.facts["layout"]
        shapes.add(layout)
        if layout == "square":
            assert width == height <= cairo_layout.SQUARE
        if layout == "tall":
            assert height > 1.3 * width
        for image in item.question.images:
            low, high = image.convert("L").getextrema()
            assert high - low > 20, item.facts
    assert shapes == set(cairo_layout.LAYOUTS)


def test_margin_and_contrast_are_measured_on_the_image():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:56] = 255  # 4 pixels from the right side
    image = Image.fromarray(np.where(mask, 51, 204).astype(np.uint8))
    assert least_margin(mask) == 4
    assert contrast_of(image, mask, 20) == pytest.approx(0.6, abs=0.01)


def test_a_missing_family_is_named(fonts, monkeypatch):
    monkeypatch.setattr(cairo_layout, "FAMILIES", ("DejaVu Sans", "No Such Family"))
    with pytest.raises(FileNotFoundError, match="lacks No Such Family"):
        draw_held_out(fonts, 1)


def test_a_typeface_under_another_name_is_found(tmp_path):
    for folder, files in {
        "one": ("DejaVuSans.ttf", "cmr10.ttf"),
        "other": ("DejaVuSerif.ttf", "DejaVuSans.ttf"),
    }.items():
        (tmp_path / folder).mkdir()
        for number, file in enumerate(files):
            shutil.copy(MATPLOTLIB / file, tmp_path / folder / f"{folder}{number}.ttf")
    found = in_common(tmp_path / "one", tmp_path / "other")
    assert found == [("one0.ttf", "other1.ttf")]


def record(style: str, truth: str, answer: str, **facts) -> tables.Record:
    facts = {"kind": "read", "tiles": 2, "length": len(truth), "style": style} | facts
    return tables.Record(facts, truth, answer)


def test_tables_count_what_is_right_in_each_group(tmp_path):
    records = [
        record("plain", "12", "12", height=15.0),
        record("plain", "123456789", "1", height=25.0),
        record("JPEG", "7", "1", height=90.0, tiles=1),
        record("JPEG", "7", "7", height=90.0, kind="count"),
    ]
    text = tables.by_category(records)
    assert "All questions: 50.0 % of 4." in text
    assert "lines of up to 8 characters: 100.0 % of 1." in text
    assert "in one tile: 0.0 % of 1; in several: 50.0 % of 2." in text
    assert "| JPEG | 50.0 % of 2 |" in text
    assert "| less than 20 pixels | 100.0 % of 1 |" in text
    assert "| 80 pixels or more | 0.0 % of 1 |" in text

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- evaluate_tiny: x -->\nold\n<!-- end -->\nb\n")
    tables.write(page, "x", "new")
    kept = "a\n<!-- evaluate_tiny: x -->\n\nnew\n\n<!-- end -->\nb\n"
    assert page.read_text() == kept
    with pytest.raises(ValueError, match="evaluate_tiny: y"):
        tables.write(page, "y", "new")


def test_wrong_answers_are_shown_with_a_guess(fonts, tmp_path):
    items = draw_held_out(fonts, 12)
    found = []
    for item in items:
        facts = item.facts | {"kind": item.question.kind}
        found.append((item, tables.Record(facts, item.question.turns[0][1], "0")))
    text = wrong.show(found, tmp_path / "wrong.png", seed=0)
    assert "(wrong.png)" in text
    assert text.count("\n| ") == wrong.SHOWN + 1  # with the header
    assert f"| {items[0].question.turns[0][0]} | {items[0].facts['style']} |" in text
    assert (tmp_path / "wrong.png").stat().st_size > 1000
    assert wrong.guess(record("plain", "17", "11")) == "similar shapes"
    assert wrong.guess(record("plain", "17", "1")) == "a character is missed"
    assert wrong.guess(record("plain", "1", "12")) == "a character too many"
    assert wrong.guess(record("plain", "1", "7", kind="count")) == "miscounted"
    assert wrong.guess(record("plain", "1", "7", kind="first")) == "another character"
    assert "small characters" in wrong.guess(record("plain", "17", "12", height=14.0))


def test_both_images_of_a_wrong_answer_are_shown(tmp_path):
    colours = ((255, 0, 0), (0, 0, 255))
    drawings = [Drawing(Image.new("RGB", (300, 90), c), ["1"], []) for c in colours]
    item = HeldOut(Question("both", drawings, [("Read both.", "1\n1")]), {})
    found = tables.Record({"kind": "both"}, "1\n1", "1\n7")
    text = wrong.show([(item, found)], tmp_path / "wrong.png", seed=0)
    assert "| 1 | Read both. | generator | `1 / 1` | `1 / 7` | similar shapes |" in text
    sheet = Image.open(tmp_path / "wrong.png")
    shown = {colour for _, colour in sheet.getcolors(maxcolors=1000)}
    assert shown >= {*colours}


def test_engines_have_names_in_the_table():
    names = ["float32", "float32:fast", "bfloat16:exact:/some/folder/int8"]
    assert [EngineChoice(*name.split(":")).name for name in names] == [
        "engine, float32",
        'engine, float32, resize "fast"',
        "engine, int8 in bfloat16",
    ]
