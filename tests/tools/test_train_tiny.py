"""The training of the tiny checkpoint: what it draws, labels and saves."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from train_tiny import IGNORED, SLOTS, encode_question, label

from drawn_text import CHARACTERS, KINDS, PILLOW_FONT, draw_string, make_question
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import Reference

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tiny.py"


@pytest.fixture(scope="module")
def reference(checkpoint) -> Reference:
    return Reference.load(checkpoint)


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


def test_each_character_is_labelled_at_its_place(reference):
    """The patch and the image token at a character's centre have its label."""
    places = 0
    for seed in range(20):
        (drawing,) = question(reference, "read", seed).drawings
        columns, rows = reference.choose_grid(*drawing.picture.size)
        patches, tokens = label(reference, drawing)
        side = reference.tile_size // reference.tower.patch_size
        tiles = columns * rows + (columns * rows > 1)
        assert patches.shape == (tiles, side**2)
        assert tokens.shape == (SLOTS + 2, tiles * (side // 2) ** 2)
        for c in drawing.characters:
            x = int(c.x / drawing.picture.width * columns * side)
            y = int(c.y / drawing.picture.height * rows * side)
            tile = y // side * columns + x // side
            found = patches[tile, y % side * side + x % side].item()
            assert found in (IGNORED, CHARACTERS.index(c.text) + 1)
            token = tile * (side // 2) ** 2
            token += y % side // 2 * (side // 2) + x % side // 2
            known = tokens[:SLOTS, token].tolist()
            assert CHARACTERS.index(c.text) + 1 in known or known[0] == IGNORED
            places += found != IGNORED
    assert places > 50


def test_only_answers_are_learnt(reference):
    example = encode_question(reference, question(reference, "read", 3, turns=2))
    learnt = example.labels != IGNORED
    assert torch.equal(example.labels[learnt], example.ids[learnt])
    text = reference.tokenizer.decode(example.ids[learnt].tolist())
    asked = question(reference, "read", 3, turns=2)
    assert text == "".join(f"{answer}<|eot_id|>" for _, answer in asked.turns)


def test_training_resumes_and_writes_a_checkpoint(tmp_path):
    options = "--pillow-font --page-steps=2 --batch-tiles=6 --threads=1 --log-every=1"

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, SCRIPT, tmp_path, *options.split(), *more],
            capture_output=True,
            text=True,
            timeout=300,
        )

    first = run("--steps", "4")
    assert first.returncode == 0, first.stderr[-3000:]
    trained = Reference.load(tmp_path / "checkpoint")
    untrained = Reference.load(tmp_path / "untrained")
    for name, value in untrained.state_dict().items():
        # Vectors may keep their values, because the weights are rounded to bfloat16.
        if value.ndim > 1:
            assert not torch.equal(value, trained.state_dict()[name]), name

    refused = run("--steps", "6")
    assert refused.returncode != 0
    assert "--resume" in refused.stderr
    second = run("--steps", "6", "--resume")
    assert second.returncode == 0, second.stderr[-3000:]
    steps = [line.split()[1] for line in second.stdout.splitlines()]
    assert steps == ["5/6", "6/6"]
