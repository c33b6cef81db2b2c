"""The training of the tiny checkpoint: what it draws, labels and saves."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_tiny
from drawn_text import KINDS, draw_string, make_question
from nemotron_vl.verify.reference import Reference
from tiny_reader import batches, forward, strings
from tiny_reader.batches import Drawer, Stage
from tiny_reader.drawing import Artist, training_fonts
from tiny_reader.training import Heads, Optimizers, learning_rate
from tiny_reader.views import IGNORED, Camera, draw_views
from typefaces import CHARACTERS, PILLOW_FONT

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tiny.py"


@pytest.fixture(scope="module")
def reference(checkpoint) -> Reference:
    return Reference.load(checkpoint)


@pytest.fixture(scope="module")
def fonts(tmp_path_factory) -> Path:
    """A folder as tools/fonts.sh writes it, with the fonts of matplotlib."""
    folder = tmp_path_factory.mktemp("fonts")
    source = Path(matplotlib.get_data_path(), "fonts/ttf")
    shutil.copytree(source, folder / "training")
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
    hidden = forward.Decoder(reference, torch.float32)(inputs)
    expected = reference.language_model.model(inputs_embeds=inputs).last_hidden_state
    torch.testing.assert_close(hidden, expected)


def train(fonts: Path, folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, folder, "--fonts", fonts, "--minutes=60"]
    command += ["--batch-tiles=4", "--threads=1", "--log-every=0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def steps_of(state: dict) -> dict[int, int]:
    """How often AdamW, the second of the optimisers, changed each parameter."""
    return {n: int(p["step"]) for n, p in state["optimizers"][1]["state"].items()}


@pytest.mark.releases
def test_training_resumes_and_writes_a_checkpoint(fonts, tmp_path):
    saved, checkpoint = tmp_path / "state.pt", tmp_path / "checkpoint"
    for stale in (tmp_path / "untrained", checkpoint):  # of an interrupted beginning
        stale.mkdir()
        (stale / "config.json").write_text("{")
        (stale / "stale.json").write_text("{")
    done = train(fonts, tmp_path, "--steps=2", "--start-at=0.29999")
    assert done.returncode == 0, done.stderr[-3000:]
    first, exported = torch.load(saved), weights_of(checkpoint)
    names = {file.name for file in checkpoint.iterdir()}
    assert names == {file.name for file in (tmp_path / "untrained").iterdir()}
    assert "stale.json" not in names

    # Without a further step, all is as it was saved. Older states have fewer keys.
    recent = ("left_out", "schedule", "spent")
    torch.save({k: v for k, v in first.items() if k not in recent}, saved)
    done = train(fonts, tmp_path, "--steps=2", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    same = torch.load(saved)
    # The optimisers' states follow. Older states do not tell how much was skipped.
    for key in first.keys() - {"optimizers", "spent"}:
        torch.testing.assert_close(same[key], first[key], rtol=0, atol=0)
    for one, other in zip(same["optimizers"], first["optimizers"], strict=True):
        torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
        assert one["param_groups"] == other["param_groups"]
    torch.testing.assert_close(weights_of(checkpoint), exported, rtol=0, atol=0)

    torch.save(first, saved)
    done = train(fonts, tmp_path, "--steps=3", "--resume", "--start-at=0.6")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from step 2 and second 2160" in done.stdout
    third = torch.load(saved)
    assert third["step"] == 3
    figures = json.loads((tmp_path / "training.json").read_text())
    assert figures["seconds"] == round(third["spent"])
    assert third["seconds"] >= 2160 and third["start_at"] == 0.6
    assert third["spent"] == pytest.approx(
        first["spent"] + third["seconds"] - 2160, abs=0.1
    )
    for name, value in third["model"].items():
        # A step of the full learning rate, 0.002, is much smaller than the weights.
        change = (value - first["model"][name]).square().mean().sqrt()
        assert change < 0.01, name
        assert change > 0 or value.ndim < 2, name
    before = steps_of(first)
    assert max(before.values()) == 2
    assert steps_of(third) == {n: before.get(n, 0) + 1 for n in steps_of(third)}

    # The exported weights are rounded to bfloat16.
    trained = {**Reference.load(checkpoint).state_dict()}
    torch.testing.assert_close(trained, {**third["model"]}, rtol=2**-8, atol=0)
    log = (tmp_path / "training.log").read_text()
    assert log.count("seed 0") == 3


@pytest.mark.releases
def test_a_training_begins_with_given_weights(fonts, tiny, tmp_path):
    """New heads learn to read the embedded tower, and then all learns a little."""
    checkpoint, folder = tmp_path / "first/checkpoint", tmp_path / "second"
    shutil.copytree(tiny, checkpoint)
    checkpoint.with_name("training.log").write_text("log of the first\n")
    options = ("--weights", str(checkpoint), "--start-at=0.5")
    done = train(fonts, folder, "--steps=1", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    (hits,) = re.findall("new heads have hits ([0-9.]+)", done.stdout)
    # Untrained features, or heads that are not trained, give less than 0.1.
    assert float(hits) > 0.4
    log = (folder / "training.log").read_text()
    assert log.startswith("log of the first\nseed 0")
    state = torch.load(folder / "state.pt")
    given = Reference.load(checkpoint).state_dict()
    for name, value in state["model"].items():
        # The warm-up begins with 2 % of the full learning rate, 0.002.
        change = (value - given[name]).abs().max()
        assert change < 1e-3, name
        assert change > 0 or value.ndim < 2, name
    assert 1800 < state["seconds"] < 1800 + state["spent"]
    figures = json.loads((folder / "training.json").read_text())
    assert figures["seconds"] == round(state["spent"])
    assert figures["weights"] == str(checkpoint)

    # The same command continues, without the given weights.
    shutil.rmtree(checkpoint)
    done = train(fonts, folder, "--steps=1", "--resume", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "new heads" not in done.stdout
    again = torch.load(folder / "state.pt")
    assert again["seconds"] == state["seconds"]
    torch.testing.assert_close(again["model"], state["model"], rtol=0, atol=0)


def test_the_learning_rate_warms_up_where_the_training_begins():
    for start in (0.5, 0.84):
        first, warm = (learning_rate(start + x, True, start) for x in (0.0, 0.02))
        assert first < 0.03
        assert warm == learning_rate(start + 0.02, True) > 0.2
    assert learning_rate(0.32, True) == learning_rate(0.32, False) == 1
    assert learning_rate(0.52, False, 0.5) == 1
    assert learning_rate(1.0, False, 0.84) == 0


def test_steps_that_are_not_finite_end_the_training(fonts, tmp_path):
    """The first step is finite, and makes the weights far too large."""
    options = ("--learning-rate=1e30", "--steps=40", "--save-every=0")
    done = train(fonts, tmp_path, *options)
    assert done.returncode != 0
    assert "20 steps in a row had no finite loss or gradient" in done.stderr
    state = torch.load(tmp_path / "state.pt")
    assert state["step"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


@torch.inference_mode(False)  # other tests turn it on
@torch.enable_grad()
def test_a_gradient_that_is_not_finite_changes_nothing(reference):
    heads = Heads(reference.tower.positions.shape[-1])
    optimizers = Optimizers(reference, heads, 0.1)
    before = heads.patch.weight.clone()
    # The loss is 0, the gradient infinite.
    assert not optimizers.step((heads.patch.weight - before).abs().sqrt().sum(), 0.2)
    assert torch.equal(heads.patch.weight, before)
    assert optimizers.step(heads.patch.weight.square().sum(), 0.2)
    assert heads.patch.weight.isfinite().all()
    assert not torch.equal(heads.patch.weight, before)


def test_it_starts_again_with_tcmalloc(monkeypatch):
    started = []
    monkeypatch.setattr(
        train_tiny.ctypes.util, "find_library", lambda name: f"lib{name}.so.4"
    )
    monkeypatch.setattr(
        train_tiny.os,
        "execv",
        lambda path, args: started.append((path, args, os.environ["LD_PRELOAD"])),
    )
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    train_tiny.use_tcmalloc()
    train_tiny.use_tcmalloc()
    preloaded = "libtcmalloc_minimal.so.4:other.so"
    assert started == [(sys.executable, sys.orig_argv, preloaded)]


KILLED = """
import os, signal
from tiny_reader.supply import Supply

supply = Supply(None, 0, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_that_draw_end_with_a_killed_training():
    command = [sys.executable, "-c", KILLED]
    # They have the output open, so this waits for their end.
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "state", "message"),
    [
        (["--resume"], None, "is missing: start without --resume"),
        ([], {}, "exists: use --resume"),
        (["--weights=none"], None, "none is not a checkpoint"),
        (["--resume"], {"weights": "a"}, "of a training with --weights a: use that"),
        (
            ["--resume", "--seed=1", "--minutes=5"],
            {"seed": 0, "minutes": 116.0, "batch_tiles": 96},
            "of a training with --seed 0, --minutes 116.0: use that",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    monkeypatch, tmp_path, options, state, message
):
    if state is not None:
        torch.save({"schedule": state}, tmp_path / "state.pt")
    threads = str(torch.get_num_threads())
    command = ["train_tiny.py", str(tmp_path), "--threads", threads, *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=message):
        train_tiny.main()
    assert not (tmp_path / "untrained").exists()
