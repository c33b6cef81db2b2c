"""`nemotron-vl demo` serves the embedded checkpoint and checks its answers."""

import pytest

from vllm_nemotron_vl.assets.nemotron_vl import TINY, draw_text
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl import demo
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.main import main
from vllm_nemotron_vl.entrypoints.nemotron_vl.demo_questions import (
    COUNT,
    draw_questions,
    untrained,
)


def test_the_images_that_the_seed_draws(tmp_path, capsys):
    """As many answers are right as the embedded checkpoint is known to give."""
    status = main(["demo", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    right = int(lines[-1].split()[0])
    assert lines[-1] == f"{right} of {COUNT} answers about images are right.", lines
    assert right >= TINY.least_right
    assert status == 0
    marks = [line[0] for line in lines if line[0] in "✓✗"]
    assert len(marks) == COUNT + 3  # three frames
    for name in ("picture_01", "counter"):
        assert (tmp_path / f"{name}_tiles.png").exists()
    assert (tmp_path / "counter.mp4").exists()


def test_what_a_user_types_or_draws(tmp_path, capsys):
    file = tmp_path / "mine.png"
    draw_text("4711-08").save(file)
    arguments = ["--text", "HELLO", "--picture", str(file), "--out", str(tmp_path)]
    assert main(["demo", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    (typed,) = (n for n, line in enumerate(lines) if line.startswith("✗ text_1 "))
    assert "truth 'HELLO'" in lines[typed]
    assert "never seen 'E' 'H' 'L' 'O'." in lines[typed + 1]
    assert str(TINY) in lines[typed + 1]
    (given,) = (n for n, line in enumerate(lines) if line.startswith("? mine "))
    assert str(TINY) in lines[given + 1]


def test_the_seed_draws_the_questions():
    one, again, other = (list(draw_questions(seed)) for seed in (3, 3, 4))
    assert [q.truth for q in one] == [q.truth for q in again]
    assert [q.truth for q in one] != [q.truth for q in other]
    assert len(one) == COUNT
    for a, b in zip(one, again, strict=True):
        for name, picture in a.pictures.items():
            assert picture.tobytes() == b.pictures[name].tobytes()
        assert untrained(a.truth) is None


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "4711-08": None,
        "12A": "'A'",
        "123\n4\n5\n6": "3 lines at most, this has 4",
        "1" * (TINY.longest + 1): f"this has {TINY.longest + 1}",
    }.items(),
)
def test_what_the_checkpoint_was_not_trained_for(text, told):
    found = untrained(text)
    assert found is None if told is None else told in found


def test_a_file_that_is_no_image_is_refused(tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("4711")
    for given in (file, tmp_path / "missing.png"):
        assert main(["demo", "--picture", str(given), "--out", str(tmp_path)]) == 2
        assert str(given) in capsys.readouterr().err


def test_an_unknown_model_is_named(tmp_path, capsys):
    assert main(["demo", "--model", "nowhere/no-model", "--out", str(tmp_path)]) == 2
    assert "nowhere/no-model" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_reported(tmp_path, capsys, monkeypatch):
    def serving(*args, **kwargs):
        raise RuntimeError("vllm ended with status 1; the end of server.log: ...")

    monkeypatch.setattr(demo, "serving", serving)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "nemotron-vl: vllm ended with status 1" in capsys.readouterr().err
