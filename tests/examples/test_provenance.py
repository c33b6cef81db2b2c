"""docs/provenance.md names each fact that `inspect` prints, and tests that exist."""

import json
import re
import shutil
from pathlib import Path

import pytest

from nemotron_vl.checkpoints.inspection import inspect
from nemotron_vl.checkpoints.published_files import KNOWN_FILES
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/provenance.md").read_text()
ROWS = [line.split(" | ")[0].strip("| ") for line in PAGE.splitlines()]


def facts(folder: Path) -> dict[str, str]:
    return {fact["name"]: fact["value"] for fact in inspect(str(folder))["facts"]}


def test_each_fact_of_inspect_has_a_row(tiny):
    named = " ".join(ROWS).replace("`", "")
    assert [name for name in facts(tiny) if name not in named] == []


def test_each_row_is_held_by_a_test_that_exists():
    held = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert len(held) > 20
    assert [file for file in held if not (ROOT / file).exists()] == []


def test_the_digests_are_those_of_the_package():
    rows = re.findall(r"^\| file `(\S+)` \| ([0-9a-f]{64}) \|", PAGE, re.MULTILINE)
    assert dict(rows) == KNOWN_FILES


EDITS = {
    "corners of the position grid": (
        "config.json",
        ("vision_config", "pos_embed_align_corners"),
        False,
        "not aligned",
    ),
    "most tiles (max_num_tiles)": (
        "preprocessor_config.json",
        ("max_num_tiles",),
        6,
        "6",
    ),
    "thumbnail": ("preprocessor_config.json", ("use_thumbnail",), False, "False"),
    "rope_theta": ("config.json", ("llm_config", "rope_theta"), 1e4, "10000.0"),
    "rms_norm_eps": ("config.json", ("llm_config", "rms_norm_eps"), 1e-6, "1e-06"),
    "decoding of a server": (
        "generation_config.json",
        ("temperature",),
        0.6,
        "samples at temperature 0.6",
    ),
}


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.mark.parametrize("name", EDITS)
def test_a_fact_follows_its_file(tiny, copy, name):
    file, (*sections, key), value, shown = EDITS[name]
    values = json.loads((copy / file).read_text())
    section = values
    for outer in sections:
        section = section[outer]
    section[key] = value
    (copy / file).write_text(json.dumps(values))
    before, after = facts(tiny), facts(copy)
    changed = {fact for fact, now in after.items() if now != before[fact]}
    assert changed == {name}
    assert after[name] == shown


def test_whose_template_and_tokens_they_are(tiny, copy):
    assert facts(tiny)["chat template"] == "equal to this package's"
    (copy / "chat_template.jinja").write_text("{{ date_string }}{{ messages }}")
    assert "its own, writes a date, SHA-256 " in facts(copy)["chat template"]
    (copy / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ date_string }}"}]
    config = json.dumps({"chat_template": named})
    (copy / "tokenizer_config.json").write_text(config)
    assert "writes a date" in facts(copy)["chat template"]
    (copy / "tokenizer_config.json").write_text("{}")
    for name in ("tokenizer.json", "generation_config.json"):
        (copy / name).unlink()
    found = facts(copy)
    assert found["chat template"] == "absent, so this package's"
    assert found["id of <image>"] == "absent"
    assert "temperature 1," in found["decoding of a server"]


def test_known_files_are_said(tiny, tmp_path):
    make_checkpoint(tmp_path, tower_layers=1, layers=1, tile_size=512, cpe_max_size=512)
    found = facts(tmp_path)
    assert found["file preprocessor_config.json"] == "the known one"
    assert found["file config.json"] == found["file tokenizer.json"] == "another"
    assert facts(tiny)["file special_tokens_map.json"] == "absent"


def test_an_absent_version_of_the_pixel_shuffle_is_said(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["ps_version"]
    (copy / "config.json").write_text(json.dumps(config))
    assert facts(copy)["pixel shuffle (ps_version)"] == "absent, so v1"


def test_a_damaged_optional_file_is_a_problem_and_ends_nothing(copy):
    (copy / "generation_config.json").write_text("")
    found = inspect(str(copy))
    assert "generation_config.json is not valid JSON" in found["problems"][0]
    assert found["facts"]


def test_what_differs_from_the_published_checkpoint_is_marked(tiny, capsys):
    assert main(["inspect", str(tiny)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (same,) = [line for line in lines if line.startswith("corners of")]
    (other,) = [line for line in lines if line.startswith("tower blocks")]
    assert "*" not in same
    assert re.fullmatch(r"tower blocks +5 \* +32", other)
