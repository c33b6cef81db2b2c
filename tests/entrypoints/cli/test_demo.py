"""`nemotron-vl demo` serves the embedded checkpoint and checks its answers."""

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl import demo
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.main import main


def test_every_answer_is_right(tmp_path, capsys):
    status = main(["demo", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "10 of 10 answers are right.", lines
    assert status == 0
    assert sum(line.startswith("✓ ") for line in lines) == 10
    for name in ("price_tag", "licence_plate", "receipt"):
        assert (tmp_path / f"{name}.png").exists()
        assert (tmp_path / f"{name}_tiles.png").exists()
    assert (tmp_path / "counter.mp4").exists()
    assert (tmp_path / "counter_tiles.png").exists()


def test_an_unknown_model_is_named(tmp_path, capsys):
    assert main(["demo", "--model", "nowhere/no-model", "--out", str(tmp_path)]) == 2
    assert "nowhere/no-model" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_reported(tmp_path, capsys, monkeypatch):
    def serving(*args, **kwargs):
        raise RuntimeError("vllm ended with status 1; the end of server.log: ...")

    monkeypatch.setattr(demo, "serving", serving)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "nemotron-vl: vllm ended with status 1" in capsys.readouterr().err
