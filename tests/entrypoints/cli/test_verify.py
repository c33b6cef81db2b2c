"""Arguments, plans and reports of `nemotron-vl verify`, without an engine."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vllm_nemotron_vl.assets.nemotron_vl import shipped_pictures
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl import verify as command
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.main import main
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify import in_tree
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.documents import (
    draw_documents,
    draw_numbers,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.engines import (
    ENGINES,
    Plan,
    Run,
    engine_options,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.reading import Reading, is_right
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.report import as_html, as_text
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.stages import (
    DTYPES,
    Row,
    worst,
    wrong_stages,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.verification import PARTS

TOWER = Row("float32", "eager", "tower", "price", 0.5)
ROWS = [
    Row("float32", "eager", "pixels, exact", "price", 0),
    Row("float32", "eager", "tower", "one tile", 1e-7),
    TOWER,
    Row("float32", "eager", "first token", "price", float("nan")),
]


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """The command sets variables, which the servers of later tests would inherit."""
    monkeypatch.setattr(command, "_ENVIRONMENT", {})


@pytest.fixture
def results() -> dict:
    questions = draw_documents(4)
    answers = [question.answer for question in questions[:3]] + ["a <b> | c"]
    return {
        "model": "some/model",
        "environment": {"device": "a CPU"},
        "rows": [row.as_dict() for row in worst(ROWS)],
        "wrong_stages": wrong_stages(ROWS),
        "not_run": ["float32, tensor-parallel: needs 2 GPU(s), and there are 0"],
        "reading": Reading(questions, answers, 1.0).as_dict(),
        "ok": False,
    }


def test_choices_are_those_of_the_modules_that_run():
    assert command._PARTS == PARTS
    assert tuple(ENGINES) == command._ENGINES


def test_the_checkpoints_code_runs_only_with_consent(tiny, capsys):
    assert main(["verify", str(tiny), "--against", "in-tree"]) == 2
    assert "add --trust-remote-code" in capsys.readouterr().err


def test_a_wrong_image_is_refused_with_the_names(tiny, capsys):
    assert main(["verify", str(tiny), "--pictures", "cat"]) == 2
    error = capsys.readouterr().err
    assert "'cat'" in error and "receipt.jpg" in error and "one tile" in error


def test_missing_timm_is_named(tiny, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["verify", str(tiny)]) == 2
    assert "pip install timm" in capsys.readouterr().err


def test_the_first_wrong_stage_is_named_and_not_its_consequences():
    assert wrong_stages(ROWS) == ["tower"]
    assert wrong_stages(ROWS[3:]) == ["first token"]  # not a number
    assert wrong_stages(ROWS[:2]) == []
    assert [row for row in worst(ROWS) if row.stage == "tower"] == [TOWER]


def test_without_a_gpu_what_does_not_run_is_named(tiny):
    plan = Plan.make(tiny, DTYPES, None, "cpu")
    assert plan.runs == [Run(dtype, "eager") for dtype in DTYPES]
    assert plan.served == Run("bfloat16", "eager")  # the checkpoint's
    reasons = "\n".join(plan.not_run)
    assert "bfloat16, encoder-graphs: needs 1 GPU(s), and there are 0" in reasons
    assert "bfloat16, tensor-parallel: needs 2 GPU(s)" in reasons
    assert Plan.make(tiny, ["float32"], ["compiled"], "cpu").served == Run(
        "float32", "compiled"
    )


def test_on_a_gpu_all_engines_run_and_a_dtype_that_does_not_fit_is_named(
    tiny, monkeypatch
):
    memory = SimpleNamespace(total_memory=15e6)  # the weights take 9.8 or 19.6 MB
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    plan = Plan.make(tiny, DTYPES, None, "cuda")
    assert plan.runs == [
        Run("float16", "eager"),
        *(Run("bfloat16", name) for name in ENGINES if name != "tensor-parallel"),
    ]
    assert plan.served == Run("bfloat16", "compiled")
    assert plan.not_run[0].startswith("float32: its weights take 0.0 GB")


@pytest.mark.parametrize("draw", [draw_documents, draw_numbers])
def test_documents_are_drawn_again_alike_and_differ_from_each_other(draw):
    questions, again = draw(40), draw(40)
    for one, other in zip(questions, again, strict=True):
        assert one[0::3] == other[0::3] and one.text == other.text
        for a, b in zip(one.pictures, other.pictures, strict=True):
            assert a.tobytes() == b.tobytes()
    assert len({q.pictures[0].tobytes() for q in questions}) == 40
    assert draw(3, seed=1)[0].answer != questions[0].answer


def test_case_and_space_around_an_answer_do_not_matter():
    assert is_right(" Oslo\n", "oslo")
    assert not is_right("12.50", "$12.50")
    assert not is_right("1250", "12.50")


def test_shipped_images_are_opened():
    assert len(shipped_pictures()) == 2
    for file in shipped_pictures():
        Image.open(file).verify()


def test_text_shows_errors_answers_and_what_did_not_run(results):
    text = as_text(results)
    assert "Wrong: tower." in text
    assert "| float32 | eager | tower | 0.5 | 0.0001 | price | NO |" in text
    assert "| this package | all | 3 of 4 |" in text
    assert "'a <b> \\| c'" in text
    assert "- float32, tensor-parallel: needs 2 GPU(s)" in text
    assert "| first token | not a number |" in text
    json.dumps(results, allow_nan=False)


CHECK = """
<script>
document.title = [...document.images].map(image => image.naturalWidth).join(" ");
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_browser_shows_the_report(results, tmp_path):
    images = [(q.text, q.pictures[0]) for q in draw_documents(4)]
    file = tmp_path / "report.html"
    file.write_text(as_html(results, images).replace("</html>", CHECK + "</html>"))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    options = ["--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    dom = subprocess.run(
        [*browser, *options], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    (widths,) = re.findall("<title>(.*)</title>", dom)
    assert widths == "320 320 320 320"
    assert '<p id="verdict"><strong>Wrong: tower.</strong>' in dom
    assert '<td class="bad">NO</td>' in dom
    assert "<td>'a &lt;b&gt; | c'</td>" in dom


@pytest.mark.releases
def test_the_other_side_reads_and_measures_in_a_process_of_its_own(tiny, tmp_path):
    """With this plugin: the in-tree model needs code that is not available."""
    run = Run("float32", "eager")
    out = tmp_path / "results.json"
    task = {"model": str(tiny), "options": engine_options(tiny, run), "out": str(out)}
    task |= {"numbers": True, "count": 10}
    command = [sys.executable, "-m", in_tree.__name__, json.dumps(task)]
    subprocess.run(command, check=True, timeout=500)
    found = json.loads(out.read_text())
    assert found["reading"]["accuracy"] > 0.5
    assert found["speed"]["pages_per_s"] > 0


@pytest.mark.releases
def test_an_in_tree_model_that_does_not_start_is_reported(tiny, tmp_path, capsys):
    options = ["--dtype", "bfloat16", "--parts", "read", "--questions", "5"]
    options += ["--against", "in-tree", "--trust-remote-code", "--out", str(tmp_path)]
    assert main(["verify", str(tiny), *options]) == 1
    text = capsys.readouterr().out
    assert "- in-tree: " in text and "| this package | all |" in text
    assert "error" in json.loads((tmp_path / "results.json").read_text())["in_tree"]
