"""Whether the files of a checkpoint are the published ones."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemotron_vl.checkpoints.embedded import embedded_digests, is_embedded
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.commands import verify as command
from nemotron_vl.main import main
from nemotron_vl.verify.published import compare_files
from support.damage import WEIGHTS, flip_a_bit, swap_layers


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """The command sets variables, which the servers of later tests would inherit."""
    monkeypatch.setattr(command, "_ENVIRONMENT", {})


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the embedded checkpoint under another path."""
    return shutil.copytree(tiny, tmp_path / "copy")


def names(found: dict, key: str) -> list[str]:
    return [entry["file"] for entry in found[key]]


def test_the_embedded_checkpoint_is_as_published(tiny):
    listed = embedded_digests()
    assert listed.keys() == {file.name for file in tiny.iterdir()}
    found = compare_files(tiny)
    assert {*found["same"]} == listed.keys()
    assert not found["differ"] and not found["not_compared"]


@pytest.mark.parametrize("damage", [swap_layers, flip_a_bit])
def test_damaged_weights_of_a_copy_are_named(copy, tmp_path, capsys, damage):
    damage(copy)
    found = compare_files(copy)
    assert names(found, "differ") == [WEIGHTS]
    assert found["differ"][0]["published"] == embedded_digests()[WEIGHTS]
    options = ["--parts", "files", "--out", str(tmp_path / "out")]
    assert main(["verify", str(copy), *options]) == 1
    assert f"Wrong: the file {WEIGHTS}." in capsys.readouterr().out


def test_a_sound_copy_passes(copy, tmp_path, capsys):
    options = ["--parts", "files", "--out", str(tmp_path / "out"), "--json"]
    assert main(["verify", str(copy), *options]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["ok"] and WEIGHTS in results["files"]["same"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "The files are the published ones, by the list of this package." in text


def test_an_edited_and_a_missing_file_of_a_copy_are_named(copy, tmp_path, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["pos_embed_align_corners"] = False
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").unlink()
    assert names(compare_files(copy), "differ") == [
        "generation_config.json",
        "config.json",
    ]
    options = ["--parts", "files", "--out", str(tmp_path / "out")]
    assert main(["verify", str(copy), *options]) == 1
    assert "it is missing; the list of this package has it" in capsys.readouterr().out


def test_a_file_too_many_is_said_beside_those_that_are_published(
    copy, tmp_path, capsys
):
    (copy / "extra.json").write_text("{}")
    options = ["--parts", "files", "--out", str(tmp_path / "out")]
    assert main(["verify", str(copy), *options]) == 0
    assert "6 are as published and 1 were not compared." in capsys.readouterr().out


def test_files_that_nobody_published_are_named_and_do_not_pass(
    checkpoint, tmp_path, capsys
):
    found = compare_files(checkpoint)
    assert not found["same"] and WEIGHTS in names(found, "not_compared")
    options = ["--parts", "files", "--out", str(tmp_path / "out")]
    assert main(["verify", str(checkpoint), *options]) == 1
    printed = capsys.readouterr().out
    assert "Nothing was compared." in printed
    assert f"| {WEIGHTS} | not compared | no published digest" in printed


def test_files_whose_published_digest_this_package_knows_are_compared(tmp_path):
    folder = tmp_path / "copied by hand"
    make_checkpoint(folder, tower_layers=1, layers=1, tile_size=512, cpe_max_size=512)
    found = compare_files(folder)
    assert found["same"] == ["preprocessor_config.json"]
    assert found["sources"] == ["docs/provenance.md"]
    reasons = {entry["file"]: entry["reason"] for entry in found["not_compared"]}
    assert "it is not the one of docs/provenance.md" in reasons["tokenizer.json"]
    assert "provenance.md" not in reasons[WEIGHTS]


def test_copies_are_recognised_by_content(copy, checkpoint, tmp_path):
    assert is_embedded(copy)
    assert not is_embedded(checkpoint)
    assert not is_embedded(tmp_path / "nowhere")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (copy / "config.json").write_text(json.dumps(config))
    assert is_embedded(copy)  # it answers the same questions
    assert WEIGHTS in names(compare_files(copy), "not_compared")
    config["force_image_size"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    assert not is_embedded(copy)


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_git_digests_are_those_of_git():
    """The value is that of Pro Git's chapter on objects."""
    expected = "d670460b4b4aece5915caf5c68d12f560a9fe3e4"
    assert git_digest(b"test content\n") == expected


@pytest.fixture
def cached(checkpoint, tmp_path) -> Path:
    """The random checkpoint as the hub's cache keeps it."""
    repository = tmp_path / "models--some--model"
    snapshot, blobs = repository / "snapshots/0a1b", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        large = file.suffix == ".safetensors"
        name = hashlib.sha256(content).hexdigest() if large else git_digest(content)
        (blobs / name).write_bytes(content)
        (snapshot / file.name).symlink_to(f"../../blobs/{name}")
    return snapshot


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_the_hubs_cache_names_its_files_by_their_digests(cached, name):
    found = compare_files(cached)
    assert {*found["same"]} == {file.name for file in cached.iterdir()}
    blob = (cached / name).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    found = compare_files(cached)
    assert names(found, "differ") == [name]
    assert found["differ"][0]["source"] == "the hub's cache of some/model"


def test_a_missing_shard_is_named(cached):
    index = {"weight_map": {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}}
    (cached / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names(compare_files(cached), "differ") == [
        "model-00002-of-00002.safetensors"
    ]


def test_a_file_that_replaced_a_link_of_the_cache_is_not_compared(cached):
    content = (cached / "config.json").read_bytes()
    (cached / "config.json").unlink()
    (cached / "config.json").write_bytes(content)
    assert names(compare_files(cached), "not_compared") == ["config.json"]


def test_the_record_of_a_download_to_a_folder_is_read(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "folder")
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (notes / f"{WEIGHTS}.metadata").write_text(f"{'0a' * 20}\n{digest}\n1700000000.0\n")
    (notes / "config.json.metadata").write_text("damaged")
    found = compare_files(folder)
    assert found["same"] == [WEIGHTS]
    assert "config.json" in names(found, "not_compared")
    flip_a_bit(folder)
    assert names(compare_files(folder), "differ") == [WEIGHTS]


@contextlib.contextmanager
def hub(answer: dict):
    """A server that answers each request like the hub's API."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


COMPARE = """
import json, sys
from pathlib import Path
from nemotron_vl.verify.published import compare_files
print(json.dumps(compare_files(Path(sys.argv[1]), "some/model@v1")))
"""


def test_the_hubs_list_of_files_is_asked(checkpoint):
    """In a process of its own: the client reads its address when it is imported."""
    config = (checkpoint / "config.json").read_bytes()
    listed = {
        "id": "some/model",
        "sha": "c0ffee",
        "siblings": [
            {"rfilename": "config.json", "blobId": git_digest(config)},
            {
                "rfilename": WEIGHTS,
                "blobId": "0" * 40,
                "lfs": {"sha256": "1" * 64, "size": 1, "pointerSize": 1},
            },
        ],
    }
    with hub(listed) as (address, asked):
        done = subprocess.run(
            [sys.executable, "-c", COMPARE, checkpoint],
            env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    found = json.loads(done.stdout)
    assert any("/api/models/some/model/revision/v1" in path for path in asked)
    assert found["same"] == ["config.json"]
    assert names(found, "differ") == [WEIGHTS]
    assert found["differ"][0]["source"] == "the hub, some/model at c0ffee"
    assert "tokenizer.json" in names(found, "not_compared")


def test_a_hub_that_cannot_be_asked_is_named_under_failed(tiny, tmp_path, capsys):
    options = ["--parts", "files", "--published", "some/model"]
    assert main(["verify", str(tiny), *options, "--out", str(tmp_path)]) == 1
    assert "The hub does not list the files of some/model" in capsys.readouterr().out
