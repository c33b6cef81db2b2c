"""The held-out images that Cairo draws, and the tables of the evaluation."""

import shutil
from pathlib import Path

import matplotlib
import pytest

from tiny_reader import tables, wrong
from tiny_reader.held_out import STYLES, draw_held_out

pytest.importorskip("cairocffi", reason="Cairo (libcairo2) draws the held-out images")


@pytest.fixture(scope="module")
def fonts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("held_out", "elsewhere"):
        shutil.copytree(Path(matplotlib.get_data_path(), "fonts/ttf"), folder / name)
    return folder


def test_the_same_seed_draws_the_same_held_out_images(fonts):
    one, other = draw_held_out(fonts, 60), draw_held_out(fonts, 60)
    for a, b in zip(one, other, strict=True):
        assert a.facts == b.facts
        assert a.question.turns == b.question.turns
        for picture, again in zip(
            a.question.pictures, b.question.pictures, strict=True
        ):
            assert picture.tobytes() == again.tobytes()
    assert len({item.facts["style"] for item in one}) > len(STYLES) / 2
    assert draw_held_out(fonts, 1, seed=1)[0].facts != one[0].facts


def test_held_out_images_have_ink_and_their_sizes(fonts):
    for item in draw_held_out(fonts, 60):
        assert 14 <= item.facts["height"] <= 140
        for picture in item.question.pictures:
            low, high = picture.convert("L").getextrema()
            assert high - low > 20, item.facts


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
    found = [
        (item, tables.Record(item.facts, item.question.turns[0][1], "0"))
        for item in items
    ]
    text = wrong.show(found, tmp_path / "wrong.png", seed=0)
    assert "(wrong.png)" in text
    assert text.count("\n| ") == wrong.SHOWN + 1  # with the header
    assert (tmp_path / "wrong.png").stat().st_size > 1000
    assert wrong.guess(record("plain", "17", "11")) == "similar shapes"
    assert wrong.guess(record("plain", "17", "1")) == "a character is missed"
    assert "small characters" in wrong.guess(record("plain", "17", "12", height=14.0))
