"""Damaged or hostile configurations, tokenizers and chat templates.

They are refused with a message, and no code in them is run.
"""

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jinja2 import TemplateError
from vllm.exceptions import VLLMValidationError
from vllm.renderers import renderer_from_config
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.llm_engine import LLMEngine

from nemotron_vl.checkpoints.inspection import inspect
from support.hostile import MARKER, Code
from support.loading import make_config
from vllm_nemotron_vl.config.nemotron_vl_names import CHAT_TEMPLATE

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
