"""Arguments, plans and reports of `nemotron-vl verify`, without an engine."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nemotron_vl.commands import verify as command
from nemotron_vl.main import main
from nemotron_vl.verify import in_tree, processes, verification
from nemotron_vl.verify.documents import draw_documents, draw_numbers
from nemotron_vl.verify.engines import Plan, Run, engine_options
from nemotron_vl.verify.expected import write_expected
from nemotron_vl.verify.images import shipped_images
from nemotron_vl.verify.reading import Reading, is_right
from nemotron_vl.verify.report import as_html, as_text
from nemotron_vl.verify.stages import DTYPES, Row, worst, wrong_stages

RUN = Run("float32", "eager")
TOWER = Row("float32", "eager", "tower", "price", 0.5)
ROWS = [
    Row("float32", "eager", "pixels, exact", "price", 0),
    Row("float32", "eager", "tower", "one tile", 1e-7),
    TOWER,
    Row("float32", "eager", "first token", "price", float("nan")),
]


ENVIRONMENT = command._ENVIRONMENT


def test_triton_reads_the_variable_for_exact_products(monkeypatch):
    """Its default rounds float32 to TensorFloat-32."""
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDAOptions

    assert CUDAOptions.default_dot_input_precision == "tf32"
    monkeypatch.setenv("TRITON_F32_DEFAULT", ENVIRONMENT["TRITON_F32_DEFAULT"])
    assert knobs.language.fp32_default == "ieee"
    assert "ieee" in CUDAOptions.allowed_dot_input_precisions


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
        "complete": True,
        "problems": ["The model reads nothing: 0 of 20 plain lines are right."],
        "failed": ["bfloat16, compiled: RuntimeError: <no memory>"],
        "not_run": ["float32, tensor-parallel: needs 2 GPU(s), and there are 0"],
        "reading": Reading(questions, answers, 1.0).as_dict(),
        "ok": False,
    }


def test_the_checkpoints_code_runs_only_with_consent(tiny, capsys):
    assert main(["verify", str(tiny), "--against", "in-tree"]) == 2
    assert "add --trust-remote-code" in capsys.readouterr().err


def test_consent_names_whose_code_would_run(tiny, capsys):
    assert main(["verify", str(tiny), "--against", "remote-code"]) == 2
    assert f"code of {tiny} and of nvidia/C-RADIOv2-H." in capsys.readouterr().err


def test_a_checkpoint_without_code_is_refused(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"], config["vision_config"]["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    options = ["--against", "remote-code", "--trust-remote-code"]
    assert main(["verify", str(folder), *options]) == 2
    assert "no auto_map in config.json" in capsys.readouterr().err


def test_a_revision_without_code_that_runs_is_refused(tiny, capsys):
    assert main(["verify", str(tiny), "--code-revision", "0" * 40]) == 2
    assert "--code-revision needs --against" in capsys.readouterr().err


def test_a_wrong_image_is_refused_with_the_names(tiny, capsys):
    assert main(["verify", str(tiny), "--images", "cat"]) == 2
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


def test_an_error_that_is_not_finite_is_valid_json():
    for error in (float("inf"), float("nan")):
        row = TOWER._replace(error=error)
        assert not row.ok
        assert json.loads(json.dumps(row.as_dict(), allow_nan=False))["error"] is None


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(verification, "verify", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    assert main(["verify", str(tiny), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.fixture
def no_engine(monkeypatch):
    """The reference and the engines are replaced by what raises an exception."""

    def replace(reference: BaseException | None, engine: BaseException) -> None:
        def write(checkpoint, dtype, device, images, folder) -> None:
            if reference:
                raise reference
            tokens = torch.arange(2)
            for number in range(len(images)):
                logits = torch.tensor([[number, 1.0], [0.0, 1.0]])
                stages = {"logits": logits, "tokens": tokens}
                save_file(stages, folder / f"{number}.safetensors")

        @contextlib.contextmanager
        def run(*_):
            raise engine
            yield

        monkeypatch.setattr(verification, "write_expected_elsewhere", write)
        monkeypatch.setattr(verification, "running_engine", run)

    return replace


def test_what_fails_is_noted_and_the_rest_runs(tiny, tmp_path, no_engine, capfd):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of an earlier run")
    no_engine(None, RuntimeError("a log\nout of memory"))
    assert main(["verify", str(tiny), "--out", str(out), "--json"]) == 1
    results = json.loads(capfd.readouterr().out)
    assert results == json.loads((out / "results.json").read_text())
    assert results["failed"] == [
        f"{dtype}, eager: RuntimeError: out of memory" for dtype in DTYPES
    ]
    assert results["complete"] and not results["ok"]
    assert "Something that was asked for failed" in (out / "report.html").read_text()

    no_engine(BrokenProcessPool("it was killed"), RuntimeError("out of memory"))
    assert main(["verify", str(tiny), "--out", str(out), "--dtype", "float32"]) == 1
    failed = json.loads((out / "results.json").read_text())["failed"]
    assert failed[0] == "float32, reference: BrokenProcessPool: it was killed"


def test_an_interrupted_run_leaves_no_earlier_verdict(tiny, tmp_path, no_engine):
    for name in ("results.json", "results.md", "report.html"):
        (tmp_path / name).write_text("vLLM and the reference agree in all stages.")
    no_engine(None, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        main(["verify", str(tiny), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert not results["complete"] and not results["ok"]
    assert "Not complete." in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_checkpoint_is_refused(tiny, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    monkeypatch.setattr(Plan, "make", lambda *_: Plan([RUN], [], RUN))
    monkeypatch.setattr(verification, "write_expected_elsewhere", write_expected)
    assert main(["verify", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"cannot load {folder}: SafetensorError" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["config.json", "llm_config", "hf_quant_config.json"])
def test_a_quantised_checkpoint_is_refused_with_what_to_do(
    tiny, tmp_path, capsys, where
):
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    if where == "hf_quant_config.json":
        (folder / where).write_text("{}")
    else:
        part = config["llm_config"] if where == "llm_config" else config
        part["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["verify", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is quantised" in error and "--parts files read measure" in error


def test_an_engine_that_was_asked_for_and_cannot_run_is_refused(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--engines", "eager", "tensor-parallel", "--out", str(tmp_path)]
    assert main(["verify", str(tiny), *options]) == 2
    assert "--engines tensor-parallel needs 2 GPU(s)" in capsys.readouterr().err


def test_an_in_tree_model_that_does_not_end_is_ended_with_its_processes(
    tiny, tmp_path, monkeypatch
):
    child = tmp_path / "pid"
    code = f"sleep 300 & echo $! > {child}; wait"
    popen = subprocess.Popen
    monkeypatch.setattr(processes, "_SECONDS", 1)
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda _, **o: popen(["sh", "-c", code], **o)
    )
    found = in_tree.run_in_tree(tiny, Run("float32", "eager"), True, 1)
    assert found == {"error": "It did not end in 1 s."}
    process = int(child.read_text())
    assert not psutil.pid_exists(process) or (
        psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    )


@pytest.mark.parametrize("draw", [draw_documents, draw_numbers])
def test_documents_are_drawn_again_alike_and_differ_from_each_other(draw):
    questions, again = draw(40), draw(40)
    for one, other in zip(questions, again, strict=True):
        assert one[0::3] == other[0::3] and one.text == other.text
        for a, b in zip(one.images, other.images, strict=True):
            assert a.tobytes() == b.tobytes()
    assert len({q.images[0].tobytes() for q in questions}) == 40
    assert draw(3, seed=1)[0].answer != questions[0].answer


def test_case_and_space_around_an_answer_do_not_matter():
    assert is_right(" Oslo\n", "oslo")
    assert not is_right("12.50", "$12.50")
    assert not is_right("1250", "12.50")


def test_shipped_images_are_opened():
    assert len(shipped_images()) == 2
    for file in shipped_images():
        Image.open(file).verify()


def test_text_shows_errors_answers_and_what_did_not_run(results):
    text = as_text(results)
    assert "Wrong: tower." in text
    assert "| float32 | eager | tower | 0.5 | 0.0001 | price | NO |" in text
    assert "| this package | all | 3 of 4 |" in text
    assert "'a <b> \\| c'" in text
    assert "- float32, tensor-parallel: needs 2 GPU(s)" in text
    assert "- bfloat16, compiled: RuntimeError" in text
    assert "| first token | not finite |" in text
    assert "## Problems\n\n- The model reads nothing" in text
    json.dumps(results, allow_nan=False)


CHECK = """
<script>
document.title = [...document.images].map(image => image.naturalWidth).join(" ");
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_browser_shows_the_report(results, tmp_path):
    images = [(q.text, q.images[0]) for q in draw_documents(4)]
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
