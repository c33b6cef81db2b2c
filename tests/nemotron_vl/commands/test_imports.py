"""Commands import PyTorch, transformers and vLLM only if needed: it takes seconds."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nemotron_vl.main import COMMANDS
from support.clips import encoded, noise
from support.documents import pdf
from support.fake_server import fake_server
from support.search import SearchServer, find, index, write_folder

HEAVY = {"torch", "transformers", "vllm", "numba"}
CODE = """
import contextlib, io, json, sys
from nemotron_vl.main import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        status = main(sys.argv[1:])
    except SystemExit as end:
        status = end.code
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported(*arguments: str) -> set[str]:
    """Names of the packages in a process that ran the command."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True
    )
    status, names = json.loads(done.stdout)
    assert not status, done.stderr
    return set(names)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help(arguments):
    assert not imported(*arguments) & {*HEAVY, "numpy", "openai", "huggingface_hub"}


def test_tiles(tiny, tmp_path):
    Image.new("RGB", (600, 400)).save(tmp_path / "photo.png")
    assert not imported("tiles", str(tmp_path / "photo.png")) & HEAVY
    (tmp_path / "clip.mkv").write_bytes(encoded(noise(3)))
    assert not imported("tiles", str(tmp_path / "clip.mkv")) & HEAVY
    out = str(tmp_path / "tiles.png")
    options = ("--model", str(tiny), "-o", out)
    assert not imported("tiles", str(tmp_path / "photo.png"), *options) & HEAVY


def test_read(tmp_path):
    (tmp_path / "page.pdf").write_bytes(pdf([Image.new("RGB", (60, 40))]))
    out = tmp_path / "answers.jsonl"
    options = ("--question", "?", "--out", str(out))
    with fake_server() as server:
        names = imported("read", str(tmp_path), "--url", server.url, *options)
    record = json.loads(out.read_text().splitlines()[-1])
    assert record["answer"]  # it read the page
    assert not names & HEAVY


def test_index_and_find(tmp_path):
    folder, place = tmp_path / "folder", tmp_path / "index"
    write_folder(folder)
    with fake_server(SearchServer) as server:
        names = imported(*index(server, folder, place))
        assert "lancedb" in names and server.asked
        more = ("--rerank", server.url, "--answer", server.url)
        names |= imported(*find(server, "blue", place, *more))
        assert server.requests
    assert not names & HEAVY


def test_inspect(tiny, tmp_path):
    weight = "base_model.model.mlp1.1"
    outputs, inputs = (
        json.loads((tiny / "config.json").read_text())[k]
        for k in ("projector_hidden_size", "vit_hidden_size")
    )
    adapter = {
        f"{weight}.lora_A.weight": torch.zeros(2, 4 * inputs),
        f"{weight}.lora_B.weight": torch.zeros(outputs, 2),
    }
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    options = ("--tp", "2", "--lora", str(tmp_path))
    assert not imported("inspect", str(tiny), *options) & HEAVY


def test_make_checkpoint_imports_no_vllm(tmp_path):
    small = ("--layers", "1", "--tower-layers", "1")
    names = imported("make-checkpoint", str(tmp_path / "out"), *small)
    assert "torch" in names  # proves that the names come from that process
    assert not names & {"transformers", "vllm"}


DOCTOR = """
from nemotron_vl.commands import diagnosis
seen = {"torch": "", "cuda": None, "vllm": "0.32.0", "kernels": [*diagnosis._KERNELS]}
diagnosis._look = lambda: seen  # its process
list(diagnosis.examine())
import json, sys
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_doctor_imports_vllm_in_another_process_only():
    """A broken vLLM may end the process that imports it."""
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR], capture_output=True, text=True, check=True
    )
    names = set(json.loads(done.stdout))
    assert "PIL" in names and not names & {"torch", "transformers", "vllm"}
