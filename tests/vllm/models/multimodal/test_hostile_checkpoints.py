"""Damaged or hostile checkpoints are refused with a message.

No code in them is run, and the memory used is bounded.
"""

import contextlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jinja2 import TemplateError
from safetensors.torch import load_file, save_file
from vllm.exceptions import VLLMValidationError
from vllm.renderers import renderer_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.llm_engine import LLMEngine

from nemotron_vl.checkpoints.inspection import inspect
from support.hostile import Code, bounded_memory
from support.loading import make_config
from vllm_nemotron_vl.config.nemotron_vl_names import CHAT_TEMPLATE

MEGABYTES = 600


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint to damage."""
    return shutil.copytree(checkpoint, tmp_path / "spoiled")


@pytest.fixture(autouse=True)
def bounded():
    """Bound the memory that each test takes."""
    with bounded_memory(MEGABYTES):
        yield


# Weight files

MARKER = "was_run"


def test_the_pickled_code_works(tmp_path):
    pickle.loads(pickle.dumps(Code(tmp_path / MARKER)))
    assert (tmp_path / MARKER).exists()


def pickled(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Code(folder / MARKER)))

    return spoil


def contents(header: Any, data: bytes = b"", length: int | None = None):
    """Replace the weights by a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def spoil(folder: Path) -> None:
        size = struct.pack("<Q", len(text) if length is None else length)
        (folder / "model.safetensors").write_bytes(size + text + data)

    return spoil


def tensor(shape: list[int], start: int, end: int, kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def cut(share: float) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return spoil


def replaced(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def sparse(folder: Path) -> None:
    """A tensor of 8 GiB in a sparse file, which takes no disk space."""
    size = 1 << 33
    contents({"mlp1.0.bias": tensor([size // 4], 0, size)})(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, 2) + size)


def with_tensor(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors["mlp1.0.bias"].clone()
        save_file(tensors, folder / "model.safetensors")

    return spoil


def index(content: Any) -> Callable[[Path], object]:
    """Write an index of shards, and one tensor to a file outside the folder."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        bias = {"mlp1.0.bias": tensors.pop("mlp1.0.bias")}
        save_file(tensors, folder / "model.safetensors")
        save_file(bias, folder.parent / "outside.safetensors")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17000000000\n"
DAMAGED = "safetensors file .* is damaged"

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code in a .bin": (pickled("pytorch_model.bin"), "holds more than tensors"),
    "code in a .pt": (pickled("model.pt"), "holds more than tensors"),
    "header of 2^62 bytes": (contents({}, length=1 << 62), DAMAGED),
    "header beyond the end": (contents({}, length=1000), DAMAGED),
    "header no JSON": (contents(b"{]"), DAMAGED),
    "header a list": (contents([1]), DAMAGED),
    "header nested": (contents(b'{"a":' * 50_000), DAMAGED),
    "tensor beyond the end": (contents({"a": tensor([4], 0, 16)}), DAMAGED),
    "tensor of 2^64 values": (
        contents({"a": tensor([1 << 32, 1 << 32], 0, 16)}, bytes(16)),
        DAMAGED,
    ),
    "overlapping tensors": (
        contents({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
        DAMAGED,
    ),
    "negative shape": (contents({"a": tensor([-4], 0, 16)}, bytes(16)), DAMAGED),
    "unknown type": (contents({"a": tensor([4], 0, 4, "X1")}, bytes(4)), DAMAGED),
    "cut off": (cut(0.5), DAMAGED),
    "empty": (replaced(b""), DAMAGED),
    "pointer of Git LFS": (replaced(LFS), DAMAGED),
    "gigabytes of a tensor": (sparse, "'mlp1.0.bias' .* config.json implies"),
    "path as a name": (with_tensor("../../x"), "'../../x' .* not part of the model"),
    "index that points outside": (
        index(
            {
                "weight_map": {
                    "mlp1.0.weight": "model.safetensors",
                    "mlp1.0.bias": "../outside.safetensors",
                }
            }
        ),
        "outside.safetensors",
    ),
    "index no JSON": (index("{]"), "double quotes"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_weight_files_are_refused(load_model, folder, name):
    spoil, cause = FILES[name]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=cause):
        load_model(folder)
    assert not (folder / MARKER).exists()
    if cause == DAMAGED:
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            inspect(str(folder))


def test_a_pickle_beside_safetensors_is_not_opened(load_model, folder):
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Code(folder / MARKER)))
    load_model(folder)
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.blocks.0.ls1.gamma", "adaptors.clip.fc.weight"]
)
def test_parts_that_the_tower_lacks_are_refused(load_model, folder, name):
    name = f"vision_model.radio_model.{name}"
    with_tensor(name)(folder)
    with pytest.raises(ValueError, match=f"{name}' .* not part of the model"):
        load_model(folder)
    assert inspect(str(folder))["problems"] == [f"1 tensors are not known: {name}."]


# Tokenizers


def set_value(folder: Path, path: str, value: Any) -> None:
    """Change a key of config.json."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    *parents, last = path.split(".")
    section = values
    for key in parents:
        section = section[key]
    section[last] = value
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("vocab_size", "token", "number"),
    [(372, "</img>", 372), (371, "<img>", 371), (365, "<img>", 371)],
)
def test_image_tokens_without_an_embedding_are_refused(
    folder, vocab_size, token, number
):
    set_value(folder, "llm_config.vocab_size", vocab_size)
    message = f"{token!r} has the id {number}, but llm_config.vocab_size = {vocab_size}"
    with pytest.raises(ValueError, match=message):
        renderer_from_config(make_config(folder, "float32"))
    assert any(message in problem for problem in inspect(str(folder))["problems"])


def test_no_process_starts_before_image_tokens_are_checked(folder, monkeypatch):
    def start(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("An engine was started.")

    monkeypatch.setattr(EngineCoreClient, "make_client", start)
    monkeypatch.setattr(EngineCoreClient, "make_async_mp_client", start)
    set_value(folder, "llm_config.vocab_size", 372)
    config = make_config(folder, "float32")
    for engine in LLMEngine, AsyncLLM:
        with pytest.raises(ValueError, match="llm_config.vocab_size = 372"):
            engine.from_vllm_config(config)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([], "the special token '<img>' is missing"),
        ([{"id": 1}], "added_tokens cannot be read"),
        ([{"content": "<img>", "id": "x"}], "added_tokens cannot be read"),
        ([{"content": "<img>", "id": None}], "added_tokens cannot be read"),
        ("abc", "added_tokens cannot be read"),
        (5, "added_tokens cannot be read"),
    ],
    ids=str,
)
def test_inspect_names_bad_tokens(folder, added, message):
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (problem,) = inspect(str(folder))["problems"]
    assert message in problem


def test_inspect_names_a_tokenizer_that_is_no_json(folder):
    (folder / "tokenizer.json").write_text("{")
    (problem,) = inspect(str(folder))["problems"]
    assert "tokenizer.json is not valid JSON" in problem


def test_inspect_needs_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert not inspect(str(folder))["problems"]


# Configurations


class Value(NamedTuple):
    path: str
    value: Any


VALUES = [
    *(Value("force_image_size", v) for v in (0, -512, 10**9, True)),
    *(Value("projector_hidden_size", v) for v in (0, 10**12)),
    *(Value("downsample_ratio", v) for v in (1e-9, -0.5, float("nan"))),
    *(Value("vision_config.patch_size", v) for v in (0, -16, 10**9)),
    Value("vision_config.hidden_size", 10**9),
    *(Value("vision_config.num_hidden_layers", v) for v in (0, 10**9, "2", 1.5)),
    Value("vision_config.num_attention_heads", 10**9),
    Value("vision_config.intermediate_size", 10**15),
    Value("vision_config.args.model", "../../evil"),
    *(Value("vision_config.args.cpe_max_size", v) for v in (0, 10**9)),
    *(Value("vision_config.args.register_multiple", v) for v in (-8, 10**9, "8")),
    *(
        Value("vision_config.args.teachers", v)
        for v in (7, "abc", [7], [{}], [{"name": []}], [{"name": "a"}] * 5000)
    ),
    *(Value("llm_config.vocab_size", v) for v in (0, -1, 10**12, "many")),
    *(Value("llm_config.hidden_size", v) for v in (10**9, -256)),
    Value("llm_config.intermediate_size", 10**15),
    *(Value("llm_config.num_hidden_layers", v) for v in (0, -1, 10**9)),
    *(Value("llm_config.num_attention_heads", v) for v in (0, -4, 10**9)),
    *(Value("llm_config.num_key_value_heads", v) for v in (0, -4, 10**9)),
    *(Value("llm_config.head_dim", v) for v in (-64, 10**9)),
    *(Value("llm_config.max_position_embeddings", v) for v in (0, 10**18)),
]


@pytest.mark.parametrize("case", VALUES, ids=lambda case: f"{case[0]}={case[1]!r:.20}")
def test_absurd_values_are_refused_by_name(folder, case):
    set_value(folder, case.path, case.value)
    last = case.path.rpartition(".")[2]
    for read in (lambda: make_config(folder, "float32"), lambda: problems(folder)):
        with pytest.raises(ValueError, match=f"(?s)config.json.*{last}"):
            read()


def problems(folder: Path) -> None:
    """Raise the problems that `inspect` finds."""
    if found := inspect(str(folder))["problems"]:
        raise ValueError(" ".join(found))


# vLLM reads these files before it knows the model, so the errors are vLLM's own.
TEXTS = {"no JSON": "{]", "a list": "[1]", "nested": '{"a":' * 100_000, "empty": ""}
VLLMS = (OSError, ValueError, AttributeError, TypeError, RecursionError)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_files_without_a_json_object_are_refused(folder, file, name):
    (folder / file).write_text(TEXTS[name])
    with pytest.raises(VLLMS):
        make_config(folder, "float32")
    with pytest.raises(ValueError, match=file):
        problems(folder)


# Chat templates

TEMPLATES = {
    "a module": ("{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}", "unsafe"),
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "an attribute": ("{{ (''|attr('__class__')).mro() }}", "unsafe"),
    "an import": ("{% include '/etc/passwd' %}", "loader"),
    "a long loop": ("{% for i in range(10 ** 9) %}x{% endfor %}", "range"),
    "no template": ("{% for %}", "chat template|unexpected|expected"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_runs_no_code(folder, name):
    from vllm.renderers.hf import safe_apply_chat_template
    from vllm.tokenizers import cached_tokenizer_from_config

    template, cause = TEMPLATES[name]
    marker = folder / MARKER
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template.replace("MARKER", str(marker))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = make_config(folder, "float32").model_config
    with pytest.raises((VLLMValidationError, TemplateError), match=f"(?i){cause}"):
        safe_apply_chat_template(
            config,
            cached_tokenizer_from_config(config),
            [{"role": "user", "content": "?"}],
            tokenize=False,
        )
    assert not marker.exists()


def test_a_given_template_replaces_the_one_of_the_checkpoint(folder):
    """As `--chat-template` gives it: the checkpoint's would never end."""
    from vllm.renderers.hf import safe_apply_chat_template
    from vllm.tokenizers import cached_tokenizer_from_config

    loops = "".join(f"{{% for i{n} in range(99999) %}}" for n in range(9))
    endless = f"{loops}{'{% endfor %}' * 9}"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = endless
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(endless)
    config = make_config(folder, "float32").model_config
    prompt = safe_apply_chat_template(
        config,
        cached_tokenizer_from_config(config),
        [{"role": "user", "content": "?"}],
        chat_template=CHAT_TEMPLATE.read_text(),
        tokenize=False,
    )
    assert "<|start_header_id|>user" in prompt


# Tokenizers: their data files are read, whatever class they name


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    "name",
    ["tokenization.Evil", "../tokenization.Evil", "Evil", "os", "builtins.exec", 7, []],
    ids=str,
)
def test_a_tokenizer_runs_no_code(folder, name, trust):
    from vllm.tokenizers import cached_tokenizer_from_config

    marker = folder / MARKER
    (folder / "tokenization.py").write_text(f"open({str(marker)!r}, 'w')\nEvil = dict")
    for file in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / file).write_bytes(pickle.dumps(Code(marker)))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [name, name]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = make_config(folder, "float32").model_config
    config.trust_remote_code = trust
    # An error is as good as a tokenizer.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        cached_tokenizer_from_config(config)
    assert not marker.exists()
