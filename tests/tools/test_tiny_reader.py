"""What the training of the tiny checkpoint draws and labels, and its arithmetic."""

import random
import re

import numpy as np
import pytest
import torch

from drawn_text import KINDS, draw_string, make_question
from tiny_reader import batches, forward, strings
from tiny_reader.batches import Drawer, Stage
from tiny_reader.drawing import Artist, training_fonts
from tiny_reader.views import IGNORED, Camera, draw_views
from typefaces import CHARACTERS, PILLOW_FONT


@pytest.fixture(scope="module")
def artist(fonts) -> Artist:
    return Artist(training_fonts(fonts / "training"))


def question(reference, kind: str, seed: int, **options):
    return make_question(random.Random(seed), PILLOW_FONT, reference, kind, **options)


def test_punctuation_stands_between_digits():
    rng = random.Random(0)
    strings = [draw_string(rng) for _ in range(500)]
    assert {len(text) for text in strings} == set(range(1, 9))
    assert set("".join(strings)) == set(CHARACTERS)
    assert not [text for text in strings if text[-1] in ".,:-/" or text[0] in ".,:/"]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_fit_what_is_drawn(reference, kind):
    for seed in range(5):
        asked = question(reference, kind, seed, turns=4)
        lines = [line for drawing in asked.drawings for line in drawing.lines]
        for text, answer in asked.turns:
            if text == "How many characters are there?":
                assert answer == str(len(lines[0]))
            elif text == "What is the first character?":
                assert answer == lines[0][0]
            elif text.startswith("Read line"):
                assert answer == lines[int(text[-2]) - 1]
            else:
                assert answer == "\n".join(lines)
        again = question(reference, kind, seed, turns=4)
        assert asked.turns == again.turns
        for one, other in zip(asked.drawings, again.drawings, strict=True):
            assert one.image.tobytes() == other.image.tobytes()


def test_the_box_of_each_character_has_ink(reference):
    """Without distortion, each box has pixels darker or lighter than the background."""
    for seed in range(10):
        (drawing,) = question(reference, "lines", seed, effort=0.0).drawings
        levels = np.asarray(drawing.image.convert("L"), np.int16)
        inked = abs(levels - np.median(levels)) > 30
        for c in drawing.characters:
            rows = slice(int(c.y - c.half_height) - 1, int(c.y + c.half_height) + 3)
            columns = slice(int(c.x - c.half_width), int(c.x + c.half_width) + 2)
            assert inked[rows, columns].any(), (seed, c)


def test_what_the_training_draws_is_text():
    rng = random.Random(0)
    drawn = [strings.draw_string(rng) for _ in range(2000)]
    assert {len(text) for text in drawn} == set(range(1, strings.MAX_LENGTH + 1))
    assert set("".join(drawn)) == set(strings.CHARACTERS)
    assert not [text for text in drawn if text[-1] in ".,:-/" or text[0] in ".,:/%"]


def test_the_training_draws_marks_wherever_the_held_out_strings_have_them():
    def pairs(draw, count: int) -> set[str]:
        rng = random.Random(0)
        drawn = [re.sub("[0-9]", "0", f" {draw(rng)} ") for _ in range(count)]
        return {text[i : i + 2] for text in drawn for i in range(len(text) - 1)}

    assert pairs(draw_string, 2000) <= pairs(strings.draw_string, 10_000)


@pytest.mark.parametrize("max_tiles", [1, 4, 12])
def test_the_same_seed_draws_the_same_training_image(artist, max_tiles):
    drawings = [
        draw_views(random.Random(5), artist, Camera(), ["12.50", "7"], max_tiles, 1.0)
        for _ in range(2)
    ]
    (one, grid), (other, _) = drawings
    assert one.image.tobytes() == other.image.tobytes()
    assert grid[0] * grid[1] <= max_tiles


def test_each_character_is_labelled_at_its_place(artist):
    """In its tile and in the thumbnail, the cell at its centre has its label."""
    camera, places = Camera(), 0
    across = camera.side // camera.patch
    for seed in range(30):
        rng = random.Random(seed)
        drawing, (columns, rows) = draw_views(
            rng, artist, camera, [strings.draw_string(rng)], 12, 1.0
        )
        views = camera.views(drawing, (columns, rows))
        tiles = columns * rows
        assert len(views.pixels) == tiles + (tiles > 1)
        width, height = drawing.image.size
        for c in drawing.characters:
            x, y = c.x / width * columns, c.y / height * rows
            # Of the tile that it is in, and of the whole image.
            for view, u, v in (
                (int(y) * columns + int(x), x % 1, y % 1),
                (-1, c.x / width, c.y / height),
            ):
                patch = int(v * across) * across + int(u * across)
                found = views.cells[view, patch, int(u * across * 2) % 2].item()
                assert found in (IGNORED, strings.CHARACTERS.index(c.text) + 1)
                places += found != IGNORED
            before = views.before[
                -1, int(c.y / height * across) * across + int(c.x / width * across)
            ]
            # That of an illegible character is of the next one in the patch.
            assert found == IGNORED or before <= c.index
    assert places > 100


def test_only_answers_are_learnt(reference, fonts):
    drawer = Drawer(reference, fonts / "training", tiles=8)
    for seed in range(5):
        example = drawer.example(random.Random(seed), Stage(True, 1, 1))
        learnt = example.labels != IGNORED
        assert torch.equal(example.labels[learnt], example.ids[learnt])
        text = reference.tokenizer.decode(example.ids[learnt].tolist())
        assert text.endswith("<|eot_id|>")
        assert set(text.replace("<|eot_id|>", "\n")) <= {*strings.CHARACTERS, "\n"}
        images = (
            example.ids == reference.tokenizer.convert_tokens_to_ids("<image>")
        ).sum()
        side = reference.tile_size // reference.tower.patch_size // 2
        assert images == side**2 * sum(len(v.pixels) for v in example.views)


def test_frames_of_a_video_are_tiles_without_a_thumbnail(reference, fonts, monkeypatch):
    monkeypatch.setattr(batches, "KINDS", {"frames": 1.0})
    drawer = Drawer(reference, fonts / "training", tiles=8)
    counts = set()
    for seed in range(8):
        example = drawer.example(random.Random(seed), Stage(True, 2, 1))
        (views,) = example.views
        counts.add(len(views.pixels))
        assert len({len(part) for part in vars(views).values()}) == 1
        for cells in views.cells:
            assert (cells > 0).any()  # each has a line
    assert counts == {2, 3}


def test_the_fast_arithmetic_is_the_references(reference):
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    conditioned = reference.condition(pixels)
    features = forward.encode(reference.tower, conditioned, torch.float32)
    torch.testing.assert_close(features, reference.tower(conditioned))
    embeds = forward.connect(reference, features)
    torch.testing.assert_close(embeds, reference.connect(features))
    inputs = torch.randn(2, 50, embeds.shape[-1])
    hidden = forward.Decoder(reference.language_model.model, torch.float32)(inputs)
    expected = reference.language_model.model(inputs_embeds=inputs).last_hidden_state
    torch.testing.assert_close(hidden, expected)
