"""The training of the tiny checkpoint: what it draws, labels and saves."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from drawn_text import KINDS, draw_string, make_question
from tiny_reader import forward, strings
from tiny_reader.batches import Drawer, Stage
from tiny_reader.drawing import Artist, training_fonts
from tiny_reader.views import IGNORED, Camera, draw_views
from typefaces import CHARACTERS, PILLOW_FONT
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import Reference

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tiny.py"


@pytest.fixture(scope="module")
def reference(checkpoint) -> Reference:
    return Reference.load(checkpoint)


@pytest.fixture(scope="module")
def fonts(tmp_path_factory) -> Path:
    """A folder as tools/fonts.sh writes it, with the fonts of matplotlib."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("training", "held_out", "elsewhere"):
        shutil.copytree(Path(matplotlib.get_data_path(), "fonts/ttf"), folder / name)
    return folder


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
            assert one.picture.tobytes() == other.picture.tobytes()


def test_the_box_of_each_character_has_ink(reference):
    """Without distortion, each box has pixels darker or lighter than the background."""
    for seed in range(10):
        (drawing,) = question(reference, "lines", seed, effort=0.0).drawings
        levels = np.asarray(drawing.picture.convert("L"), np.int16)
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


@pytest.mark.parametrize("max_tiles", [1, 4, 12])
def test_the_same_seed_draws_the_same_training_image(artist, max_tiles):
    drawings = [
        draw_views(random.Random(5), artist, Camera(), ["12.50", "7"], max_tiles, 1.0)
        for _ in range(2)
    ]
    (one, grid), (other, _) = drawings
    assert one.picture.tobytes() == other.picture.tobytes()
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
        width, height = drawing.picture.size
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
            assert before <= c.index
    assert places > 100


def test_only_answers_are_learnt(reference, fonts, artist):
    stage = Stage.first()
    stage.set(1, 1, 1)
    drawer = Drawer(reference, fonts / "training", stage, "seed", tiles=8)
    for seed in range(5):
        example = drawer.example(random.Random(seed), artist)
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


def test_the_fast_arithmetic_is_the_references(reference):
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    conditioned = reference.condition(pixels)
    features = forward.encode(reference.tower, conditioned, torch.float32)
    torch.testing.assert_close(features, reference.tower(conditioned))
    embeds = forward.connect(reference, features)
    torch.testing.assert_close(embeds, reference.connect(features))
    inputs = torch.randn(2, 50, embeds.shape[-1])
    hidden = forward.Decoder(reference, torch.float32)(inputs)
    expected = reference.language_model.model(inputs_embeds=inputs).last_hidden_state
    torch.testing.assert_close(hidden, expected)


def test_training_resumes_and_writes_a_checkpoint(fonts, tmp_path):
    options = ["--fonts", fonts, "--batch-tiles=4", "--threads=1", "--log-every=0"]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, SCRIPT, tmp_path, *options, "--minutes=60", *more],
            capture_output=True,
            text=True,
            timeout=300,
        )

    first = run("--steps", "2", "--start-at=0.29999")
    assert first.returncode == 0, first.stderr[-3000:]
    second = run("--steps", "3", "--resume", "--start-at=0.6")
    assert second.returncode == 0, second.stderr[-3000:]
    trained = Reference.load(tmp_path / "checkpoint")
    untrained = Reference.load(tmp_path / "untrained")
    for name, value in untrained.state_dict().items():
        # Vectors may keep their values, because the weights are rounded to bfloat16.
        if value.ndim > 1:
            assert not torch.equal(value, trained.state_dict()[name]), name
    assert "from step 2 " in second.stdout
    refused = run("--steps", "3")
    assert refused.returncode != 0
    assert "--resume" in refused.stderr
    log = (tmp_path / "training.log").read_text()
    assert log.count("seed 0") == 2
