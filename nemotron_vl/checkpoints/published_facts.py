# SPDX-License-Identifier: Apache-2.0
"""What decides the answers of a checkpoint, beside the published one's assumed values.

docs/provenance.md gives the source of each assumption. Reads data files and headers of
tensors only.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from vllm_nemotron_vl.config.nemotron_vl_names import CHAT_TEMPLATE
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    TOWER,
    num_prefix_tokens,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import (
    CheckpointConfig,
)

from ..regular_files import read_text
from .files import find_file, read_json
from .published_files import KNOWN_FILES, is_known

_ABSENT = "absent"
_KNOWN = "the known one"
_DEFAULT = "samples at temperature 1, vLLM's default"


class Fact(NamedTuple):
    """A fact about a checkpoint.

    Args:
        name: Short description.
        value: What the checkpoint has.
        assumed: What the published one is taken to have; empty if nobody knows.
    """

    name: str
    value: str
    assumed: str


def published_facts(
    model: str,
    config: CheckpointConfig,
    tensors: Collection[str],
    ids: Mapping[str, int],
) -> list[Fact]:
    """The facts that decide the answers of a checkpoint.

    Args:
        model: Folder or name on the hub.
        config: Content of ``config.json``.
        tensors: Names of the checkpoint's tensors.
        ids: Ids of the tokens that the tokenizer adds to its vocabulary.
    """
    preprocessor = _optional(model, "preprocessor_config.json")
    generation = _optional(model, "generation_config.json")
    vision: Any = config.vision_config
    llm: Any = config.llm_config
    stored = "stored" if CONDITIONER_TENSORS.keys() <= {*tensors} else "CLIP's"
    given = "ps_version" in config.model_fields_set
    shuffle = config.ps_version if given else f"absent, so {config.ps_version}"
    rope = llm.rope_scaling or llm.rope_parameters or {}
    extra = [
        name
        for name in tensors
        if name.startswith(f"{TOWER}model.norm.") or ".ls1." in name
    ]
    rows = [
        ("tower", vision.model_name, "vit_huge_patch16_224"),
        ("tower blocks", vision.num_hidden_layers, 32),
        (
            "corners of the position grid",
            "aligned" if vision.pos_embed_align_corners else "not aligned",
            "aligned",
        ),
        ("position grid, pixels", vision.cpe_max_size, 2048),
        ("class and register tokens", num_prefix_tokens(vision), 8),
        ("final norm, layer scales", ", ".join(extra) or "none", "none"),
        ("mean and deviation of pixels", stored, "stored"),
        ("pixel shuffle (ps_version)", shuffle, "v2"),
        ("downsample_ratio", config.downsample_ratio, 0.5),
        ("tile, pixels", config.force_image_size, 512),
        ("most tiles (max_num_tiles)", preprocessor.get("max_num_tiles", _ABSENT), 12),
        ("thumbnail", preprocessor.get("use_thumbnail", _ABSENT), True),
        ("image_tag_type", _get(config, "image_tag_type"), "internvl"),
        ("id of <image>", ids.get("<image>", _ABSENT), 128256),
        ("id of <img>", ids.get("<img>", _ABSENT), 128257),
        ("id of </img>", ids.get("</img>", _ABSENT), 128258),
        ("vocab_size", llm.vocab_size, 128512),
        ("blocks of the language model", llm.num_hidden_layers, 32),
        ("rms_norm_eps", llm.rms_norm_eps, 1e-5),
        ("rope_theta", _number(_get(llm, "rope_theta", rope.get("rope_theta"))), 5e5),
        ("rope scaling", rope.get("rope_type", rope.get("type", "none")), "llama3"),
        ("chat template", _template(model), ""),
        ("decoding of a server", _decoding(generation), _DEFAULT),
        *((f"file {name}", _file(model, name), _KNOWN) for name in KNOWN_FILES),
    ]
    return [Fact(name, str(value), str(assumed)) for name, value, assumed in rows]


def _get(section: Any, key: str, default: object = None) -> object:
    value = getattr(section, key, None)
    value = default if value is None else value
    return _ABSENT if value is None else value


def _number(value: object) -> object:
    """JSON may write the same number as an integer."""
    return float(value) if isinstance(value, int) else value


def _optional(model: str, name: str) -> dict[str, Any]:
    """Content of a data file, empty if the checkpoint has none or a damaged one."""
    try:
        return read_json(model, name)
    except (OSError, ValueError):
        return {}


def _file(model: str, name: str) -> str:
    """Whether a file is the one whose digest is known."""
    try:
        return _KNOWN if is_known(find_file(model, name)) else "another"
    except (OSError, ValueError):
        return _ABSENT


def _template(model: str) -> str:
    """Whose chat template it is, as far as one can tell."""
    try:
        text = read_text(find_file(model, "chat_template.jinja"))
    except ValueError:
        return "cannot be read"
    except OSError:
        # A file may list several templates by name.
        text = str(_optional(model, "tokenizer_config.json").get("chat_template") or "")
    if not text:
        return "absent, so this package's"
    if text == CHAT_TEMPLATE.read_text():
        return "equal to this package's"
    dates = ("date_string", "strftime_now")
    date = "writes a date" if any(word in text for word in dates) else "writes no date"
    return f"its own, {date}, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"


def _decoding(generation: dict[str, Any]) -> str:
    """How ``vllm serve`` decodes where a request names no temperature.

    vLLM reads the temperature, and not ``do_sample``.
    """
    temperature = generation.get("temperature")
    if temperature is None:
        return _DEFAULT
    return f"samples at temperature {temperature}" if temperature else "greedy"
