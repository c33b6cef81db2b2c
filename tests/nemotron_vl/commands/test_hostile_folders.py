"""Commands on folders from elsewhere: they end, in bounded memory, and print no codes.

Each command runs in a process of its own, with limits on its memory and time.
"""

import functools
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_vl.commands import diagnosis
from nemotron_vl.main import main
from nemotron_vl.regular_files import MOST_BYTES
from support.clips import encoded, noise
from support.documents import solid
from support.hostile import bounded_memory

DATA = (
    "vocab.json",
    "config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "hf_quant_config.json",
    "model.safetensors",
)
MEMORY = 8 << 30  # of addresses, most of which PyTorch does not use
SECONDS = 100


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint to damage."""
    return shutil.copytree(checkpoint, tmp_path / "spoiled")


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY, MEMORY))
    done = subprocess.run(
        [sys.executable, "-m", main.__module__, *map(str, arguments)],
        **{"capture_output": True, "timeout": SECONDS, "preexec_fn": limit} | options,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def put(file: Path, kind: str) -> None:
    """Replace a file by something that is no file."""
    if file.exists():
        file.unlink()
    if kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    elif kind == "a folder":
        file.mkdir()
    else:
        with file.open("wb") as opened:
            opened.truncate(1 << 31)


KINDS = ("a pipe", "a device", "a folder", "a large file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DATA)
def test_inspect_reads_only_regular_files(folder, name, kind):
    put(folder / name, kind)
    done = run("inspect", folder)
    told = done.stdout + done.stderr
    if kind == "a folder" and name in ("chat_template.jinja", "vocab.json"):
        assert done.returncode == 0  # not needed, and nothing that hangs
    elif name == "model.safetensors" and kind == "a large file":
        assert done.returncode == 2 and b"is damaged" in told
    else:
        assert done.returncode in (1, 2) and name.encode() in told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_inspect_reads_only_regular_adapters(checkpoint, tmp_path, name, kind):
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    put(tmp_path / name, kind)
    done = run("inspect", checkpoint, "--lora", tmp_path)
    assert done.returncode == 2


@pytest.mark.parametrize("config", ["[]", "null", "7", "[" * 100_000, "{]", "\xff"])
def test_an_adapter_without_a_json_object_is_named(
    checkpoint, tmp_path, config, capsys
):
    (tmp_path / "adapter_config.json").write_bytes(config.encode("latin-1"))
    assert main(["inspect", str(checkpoint), "--lora", str(tmp_path)]) == 2
    assert "adapter_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "demo"])
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "w.safetensors"])
def test_libraries_are_not_given_what_is_no_file(folder, tmp_path, command, name):
    """vLLM and transformers open the files of a folder by their names."""
    put(folder / name, "a pipe")
    out = ("--out", tmp_path / "out")
    model = ("--model", folder) if command == "demo" else (folder,)
    done = run(command, *model, *out)
    assert done.returncode == 2
    assert f"{folder / name} is not a regular file.".encode() in done.stderr


def test_read_serves_no_folder_with_a_pipe(folder, tmp_path):
    put(folder / "vocab.json", "a pipe")
    solid("red").save(tmp_path / "page.png")
    asked = ("--question", "?", "--model", folder, "--out", tmp_path / "answers.jsonl")
    done = run("read", tmp_path / "page.png", *asked)
    assert done.returncode == 2 and b"vocab.json is not a regular file." in done.stderr


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_tiles_and_demo_read_only_regular_files(tmp_path, kind):
    for name in ("page.png", "clip.mp4"):
        put(tmp_path / name, kind)
        done = run("tiles", tmp_path / name)
        assert done.returncode == 1 and b"is not a regular file." in done.stderr
    done = run("demo", "--image", tmp_path / "page.png", "--out", tmp_path / "out")
    assert done.returncode == 2 and b"is not a regular file." in done.stderr


@pytest.mark.parametrize("option", ["--out", "--batch", "--schema"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_read_opens_only_regular_files(tmp_path, option, kind):
    solid("red").save(tmp_path / "page.png")
    put(tmp_path / "other", kind)
    options = {"--out": tmp_path / "out", "--url": "http://127.0.0.1:9"}
    if option == "--batch":
        options = {"--model": "m"}
    options |= {"--question": "?", option: tmp_path / "other"}
    given = [part for pair in options.items() for part in pair]
    done = run("read", tmp_path / "page.png", *given)
    assert done.returncode == 2 and b" is not a regular file." in done.stderr


def test_a_large_line_in_the_place_of_records(tmp_path, capsys):
    out = tmp_path / "model.safetensors"
    put(out, "a large file")
    solid("red").save(tmp_path / "page.png")
    asked = ["--question", "?", "--url", "http://127.0.0.1:9", "--out", str(out)]
    with bounded_memory(150):
        assert main(["read", str(tmp_path / "page.png"), *asked]) == 2
    assert "is no file of answers of this version: line 1" in capsys.readouterr().err


def test_the_largest_data_files_take_bounded_memory(folder):
    """JSON of empty lists takes the most memory for its bytes."""
    text = (folder / "config.json").read_text().rstrip().removesuffix("}")
    lists = "[]," * ((MOST_BYTES - len(text) - 100) // 3)
    (folder / "config.json").write_text(f'{text}, "x": [{lists} []]}}')
    with bounded_memory(600):
        assert main(["inspect", str(folder)]) == 0


# Terminals

CODES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"


def clean(output: bytes) -> bool:
    """Whether a terminal shows all of it."""
    lines = output.decode()
    return not {*lines} & {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\udc9b"}


def test_inspect_prints_no_codes_of_a_checkpoint(folder):
    header = {CODES + "\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (folder / "more.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(4)
    )
    for name, key in (
        ("config.json", "image_tag_type"),
        ("config.json", "torch_dtype"),
        ("generation_config.json", "temperature"),
        ("preprocessor_config.json", "max_num_tiles"),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {key: CODES}))
        done = run("inspect", folder)
        assert clean(done.stdout + done.stderr)
        assert b"1b]0;title" in done.stdout + done.stderr


def test_inspect_prints_json_for_any_name(folder):
    header = {CODES + "\x7f": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (folder / "more.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + bytes(4)
    )
    done = run("inspect", folder, "--json")
    assert clean(done.stdout)
    assert any(CODES in problem for problem in json.loads(done.stdout)["problems"])


NAMES = [CODES.encode(), b"no\xff\xfe utf-8", b"two\nlines"]


@pytest.mark.parametrize("name", NAMES, ids=["codes", "bytes", "lines"])
def test_names_of_files_are_escaped(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = {"pdf": b"%PDF-1.4 and no more", "mkv": encoded(noise(3)), "gif": b""}
    solid("red").save(folder / "page.png")
    contents["png"] = (folder / "page.png").read_bytes()
    (folder / "page.png").unlink()
    paths = [folder / f"{os.fsdecode(name)}.{suffix}" for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    options = ("--question", "?", "--model", "m")
    for done, lines in (
        (run("tiles", folder), 4 + 2),
        (run("read", folder, *options, "--batch", tmp_path / "requests"), 1 + 2),
        (run("read", *paths, "--what" + os.fsdecode(name)), None),
        (run("inspect", folder / os.fsdecode(name)), None),
    ):
        assert clean(done.stdout + done.stderr), done.stdout + done.stderr
        if lines is not None:
            assert len((done.stdout + done.stderr).splitlines()) == lines


def test_doctor_prints_no_codes_of_the_environment():
    names = ("VLLM_PLUGINS", "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "HF_HOME")
    done = run("doctor", env=os.environ | dict.fromkeys(names, CODES), preexec_fn=None)
    assert clean(done.stdout + done.stderr)
    assert done.stdout.count(b"1b]0;title") >= len(names)


def test_doctor_takes_any_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "\u00b2")  # a digit, but no number for int()
    assert "OMP_NUM_THREADS=\u00b2" in diagnosis._threads(on_cpu=True).found


# Python files

MODULES = ("json", "logging", "torch", "vllm", "multiprocessing", "PIL", "pickle")


@pytest.mark.parametrize("command", ["doctor", "read", "tiles", "inspect", "verify"])
def test_no_python_file_of_the_current_folder_is_run(folder, tmp_path, command):
    """Such as that of a checkpoint, or of documents that were unpacked."""
    marker = tmp_path / "was_run"
    for name in MODULES:
        code = f"open({str(marker)!r}, 'a').write('{name} ')"
        (folder / f"{name}.py").write_text(code)
    solid("red").save(folder / "page.png")
    batch = ("--question", "?", "--model", "m", "--batch", tmp_path / "requests")
    options = {
        "read": ("page.png", *batch),
        "tiles": ("page.png",),
        "inspect": (".",),
        "verify": (".", "--parts", "files", "--out", tmp_path / "out"),
    }
    program = Path(sys.executable).with_name("nemotron-vl")
    done = subprocess.run(
        [program, command, *options.get(command, ())],
        cwd=folder,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode in (0, 1), done.stderr.decode()
    assert not marker.exists(), marker.read_text()


def test_the_python_files_would_be_run(tmp_path):
    marker = tmp_path / "was_run"
    (tmp_path / "json.py").write_text(f"open({str(marker)!r}, 'a')")
    subprocess.run([sys.executable, "-c", "import json"], cwd=tmp_path, check=True)
    assert marker.exists()
