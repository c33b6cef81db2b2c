# SPDX-License-Identifier: Apache-2.0
"""What a configuration of ``Llama_Nemotron_Nano_VL`` must be to be served.

The serving path and the command ``nemotron-vl`` share these checks. Nothing here
imports PyTorch, transformers or vLLM, whose imports take seconds.
"""

from operator import attrgetter
from typing import Any

from ...config.nemotron_vl_names import MODEL_TYPE

# Width, blocks, heads and MLP width of the ViTs that C-RADIO's `args.model` may
# name, by timm's names. Others were not tried.
TOWER_DIMS = {
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
}

# C-RADIO's training options that shape the tower. The dict holds about a
# hundred more, which are kept and ignored.
TOWER_ARGS = ("cpe_max_size", "register_multiple", "teachers", "cls_token_per_teacher")

# Values of transformers' LlamaConfig for keys that `llm_config` leaves out.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}

Kind = type | tuple[type, ...]

_TYPE_NAMES = {type(None): "null"}

# Keys that may be left out; transformers would say less about a wrong type.
_OPTIONAL: dict[str, Kind] = {
    "quantization_config": (dict, type(None)),
    "llm_config.quantization_config": (dict, type(None)),
    "llm_config.attention_bias": bool,
    "llm_config.mlp_bias": bool,
    "llm_config.tie_word_embeddings": bool,
    "llm_config.hidden_act": str,
    "llm_config.rms_norm_eps": float,
    "llm_config.rope_scaling": (dict, type(None)),
    "llm_config.rope_parameters": (dict, type(None)),
}

# No model comes near these sizes, and what they shape is built before a tensor
# of the checkpoint is compared with it: a file that says more is broken or means
# to exhaust the machine.
_LARGEST = {
    "force_image_size": 4096,
    "projector_hidden_size": 1 << 20,
    "vision_config.patch_size": 1024,
    "vision_config.hidden_size": 1 << 16,
    "vision_config.intermediate_size": 1 << 20,
    "vision_config.num_hidden_layers": 1024,
    "vision_config.num_attention_heads": 1024,
    "llm_config.vocab_size": 1 << 24,
    "llm_config.hidden_size": 1 << 20,
    "llm_config.intermediate_size": 1 << 20,
    "llm_config.num_hidden_layers": 1024,
    "llm_config.num_attention_heads": 4096,
    "llm_config.num_key_value_heads": 4096,
    "llm_config.head_dim": 4096,
    "llm_config.max_position_embeddings": 1 << 22,
}
# Sizes that follow from others where they are null.
_DERIVED = ("llm_config.num_key_value_heads", "llm_config.head_dim")

_RATIOS = (1, 0.5, 0.25)  # of the pixel shuffle
_LARGEST_GRID = 512  # patches in a row of the position embeddings
_MOST_PREFIX_TOKENS = 1024


def check_values(config: dict[str, Any]) -> None:
    """Refuse a content of ``config.json`` of which no configuration can be made.

    Raises:
        ValueError: A required key is missing, not of its type or a size that no
            model has.
    """
    _check_required_keys(config)
    _check_optional_types(config)
    _check_given_sizes(config)


def _check_required_keys(config: dict[str, Any]) -> None:
    required: dict[str, Kind] = {
        "llm_config": dict,
        "vision_config": dict,
        "vision_config.patch_size": int,
        "vision_config.args": dict,
        "vision_config.args.model": str,
        "vision_config.args.cpe_max_size": int,
        "force_image_size": int,
        "downsample_ratio": (int, float),
        "vit_hidden_size": int,
        "projector_hidden_size": int,
    }
    for path, kind in required.items():
        value: Any = config
        for key in path.split("."):
            if key not in value:
                raise ValueError(
                    f"config.json: the key {path!r} is missing. A "
                    f"{MODEL_TYPE} checkpoint has it; download the "
                    "file again or restore the key."
                )
            value = value[key]
        _check_type(path, value, kind)


def _check_optional_types(config: dict[str, Any]) -> None:
    for path, kind in _OPTIONAL.items():
        section, _, key = path.rpartition(".")
        values = config[section] if section else config
        if key in values:
            _check_type(path, values[key], kind)


def _check_type(path: str, value: Any, kind: Kind) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # JSON's true and false are no numbers.
    mistaken = isinstance(value, bool) and bool not in kinds
    if not isinstance(value, kinds) or mistaken:
        names = " or ".join(_TYPE_NAMES.get(k, k.__name__) for k in kinds)
        raise ValueError(
            f"config.json: {path} must be of type {names}, but is {value!r}."
        )


def _check_given_sizes(config: dict[str, Any]) -> None:
    # transformers divides by some of them.
    for path, largest in _LARGEST.items():
        section, _, key = path.rpartition(".")
        values = config[section] if section else config
        if key in values and not (values[key] is None and path in _DERIVED):
            _check_size(path, values[key], 1, largest)
    llm = {**LLAMA_DEFAULTS, **config["llm_config"]}
    width, heads = llm["hidden_size"], llm["num_attention_heads"]
    if width % heads:
        raise ValueError(
            f"config.json: llm_config.hidden_size = {width} is not supported; it must "
            f"be a multiple of num_attention_heads {heads}."
        )


def check_sizes(config: Any) -> None:
    """Refuse sizes that no model has, before anything is built from them.

    Args:
        config: The composite configuration.

    Raises:
        ValueError: Names the key of ``config.json``, the value and the range.
    """
    vision, ratio = config.vision_config, config.downsample_ratio
    if ratio not in _RATIOS:
        raise ValueError(
            f"config.json: downsample_ratio = {ratio!r} is not supported; supported: "
            f"{', '.join(map(str, _RATIOS))}."
        )
    for path, largest in _LARGEST.items():
        _check_size(path, attrgetter(path)(config), 1, largest)
    args = "vision_config.args"
    most = _LARGEST_GRID * vision.patch_size
    _check_size(f"{args}.cpe_max_size", vision.cpe_max_size, 1, most)
    registers = vision.register_multiple
    if registers is not None:
        _check_size(f"{args}.register_multiple", registers, 0, _MOST_PREFIX_TOKENS)
    named = isinstance(vision.teachers, list) and all(
        isinstance(teacher, dict) and isinstance(teacher.get("name"), str)
        for teacher in vision.teachers
    )
    if not named or len(vision.teachers) > _MOST_PREFIX_TOKENS:
        raise ValueError(
            f"config.json: {args}.teachers must be a list of at most "
            f"{_MOST_PREFIX_TOKENS} objects with a name."
        )


def _check_size(path: str, value: Any, least: int, largest: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= largest:
        raise ValueError(
            f"config.json: {path} = {value!r} is not supported; it must be a whole "
            f"number from {least} to {largest}."
        )


def check_servable(
    config: Any, preprocessor_config: dict[str, Any] | None = None
) -> None:
    """Refuse a configuration that the native model would compute wrongly.

    Args:
        config: The composite configuration.
        preprocessor_config: Content of ``preprocessor_config.json``, if any.

    Raises:
        ValueError: Names the file, the key, the value found and what is supported.
    """
    check_sizes(config)
    vision = config.vision_config
    args = vision.args

    def refuse(key: str, value: object, supported: str, file="config.json") -> None:
        raise ValueError(f"{file}: {key} = {value!r} is not supported; {supported}.")

    if vision.model_name not in TOWER_DIMS:
        names = ", ".join(TOWER_DIMS)
        refuse("vision_config.args.model", vision.model_name, f"supported: {names}")
    if (tag := getattr(config, "image_tag_type", "internvl")) != "internvl":
        refuse("image_tag_type", tag, "supported: 'internvl'")
    if config.ps_version not in ("v1", "v2"):
        refuse("ps_version", config.ps_version, "supported: 'v1', 'v2'")
    for key, reason in {
        "vitdet_window_size": "only full attention is implemented; supported: null",
        "adaptor_names": "the model reads the backbone's features; supported: null",
        "feature_normalizer_config": "features are used as they are; supported: null",
    }.items():
        if value := getattr(vision, key, None):
            refuse(f"vision_config.{key}", value, reason)
    if registers := args.get("cpe_num_registers"):
        refuse(
            "vision_config.args.cpe_num_registers",
            registers,
            "registers are counted by register_multiple; supported: null",
        )

    image_size, patch_size = config.force_image_size, vision.patch_size
    unit = patch_size * round(1 / config.downsample_ratio)
    if image_size % unit:
        refuse(
            "force_image_size",
            image_size,
            "it must be a multiple of vision_config.patch_size / "
            f"downsample_ratio = {unit} pixels",
        )
    if vision.cpe_max_size < image_size or vision.cpe_max_size % patch_size:
        refuse(
            "vision_config.args.cpe_max_size",
            vision.cpe_max_size,
            f"it must be a multiple of patch_size {patch_size} and at least "
            f"force_image_size {image_size}",
        )
    if config.vit_hidden_size != vision.hidden_size:
        refuse(
            "vit_hidden_size",
            config.vit_hidden_size,
            f"{vision.model_name} has {vision.hidden_size}",
        )
    tile = (preprocessor_config or {}).get("image_size", image_size)
    if tile != image_size:
        refuse(
            "image_size",
            tile,
            f"it must equal force_image_size {image_size} of config.json",
            file="preprocessor_config.json",
        )
