# SPDX-License-Identifier: Apache-2.0
"""Checks whether a configuration of ``Llama_Nemotron_Nano_VL`` can be served.

The model and the command ``nemotron-vl`` share these checks. Nothing here imports
PyTorch, transformers or vLLM, which takes seconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...config.nemotron_vl_names import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from .nemotron_vl_schema import check_sizes
from .nemotron_vl_towers import TOWER_DIMS

_RATIOS = (1, 0.5, 0.25)  # of the pixel shuffle
_LARGEST_GRID = 512  # patches in a row of the position embeddings
_MOST_PREFIX_TOKENS = 1024
# For a config.json without the key.
PS_VERSION_ASSUMED = (
    'config.json has no key ps_version: "v1" is assumed, as in the published code of '
    'the configuration, but the model was trained with "v2". If answers are wrong, '
    """set --hf-overrides '{"ps_version": "v2"}'."""
)
# Before the embeddings of an image, for each of them, and behind them.
IMAGE_TOKENS = (IMAGE_START, IMAGE_TOKEN, IMAGE_END)


def check_shape(config: Any) -> None:
    """Refuse sizes that no model has, before a module is built with them.

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
    check_sizes(config)
    args = "vision_config.args"
    most = _LARGEST_GRID * vision.patch_size
    _check_range(f"{args}.cpe_max_size", vision.cpe_max_size, 1, most)
    registers = vision.register_multiple
    if registers is not None:
        _check_range(f"{args}.register_multiple", registers, 0, _MOST_PREFIX_TOKENS)
    named = isinstance(vision.teachers, list) and all(
        isinstance(teacher, dict) and isinstance(teacher.get("name"), str)
        for teacher in vision.teachers
    )
    if not named or len(vision.teachers) > _MOST_PREFIX_TOKENS:
        raise ValueError(
            f"config.json: {args}.teachers must be a list of at most "
            f"{_MOST_PREFIX_TOKENS} objects with a name."
        )


def _check_range(path: str, value: Any, least: int, largest: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= largest:
        raise ValueError(
            f"config.json: {path} = {value!r} is not supported; it must be a whole "
            f"number from {least} to {largest}."
        )


def check_servable(
    config: Any, preprocessor_config: dict[str, Any] | None = None
) -> None:
    """Refuse a configuration for which this model would compute wrong results.

    Args:
        config: The composite configuration.
        preprocessor_config: Content of ``preprocessor_config.json``, if any.

    Raises:
        ValueError: Names the file, the key, the value found and what is supported.
    """
    check_shape(config)
    vision = config.vision_config

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
    for key, reason in {
        "cpe_num_registers": "registers are counted by register_multiple; supported: "
        "null",
        "model_norm": "the tower has no norm behind its blocks; supported: false",
    }.items():
        if value := vision.args.get(key):
            refuse(f"vision_config.args.{key}", value, reason)

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


def image_token_ids(
    vocabulary: Mapping[str, int], tokens: Sequence[str] = IMAGE_TOKENS
) -> list[int]:
    """Ids of the tokens around and in the place of an image.

    Args:
        vocabulary: Ids of the tokenizer's tokens.
        tokens: Names of the three tokens.

    Raises:
        ValueError: Names the token that is missing.
    """
    for token in tokens:
        if token not in vocabulary:
            raise ValueError(
                f"tokenizer.json: the special token {token!r} is missing. "
                "Use the tokenizer of the checkpoint."
            )
    return [vocabulary[token] for token in tokens]


def check_image_tokens(
    vocabulary: Mapping[str, int],
    vocab_size: int,
    tokens: Sequence[str] = IMAGE_TOKENS,
) -> None:
    """Refuse a tokenizer whose image tokens have no embedding.

    Args:
        vocabulary: Ids of the tokenizer's tokens.
        vocab_size: Rows of the language model's embeddings.
        tokens: Names of the three tokens.

    Raises:
        ValueError: Names the token, its id and ``vocab_size``.
    """
    ids = image_token_ids(vocabulary, tokens)
    for token, number in zip(tokens, ids, strict=True):
        if number >= vocab_size:
            raise ValueError(
                f"tokenizer.json: the special token {token!r} has the id {number}, "
                f"but llm_config.vocab_size = {vocab_size} of config.json has no "
                "embedding for it; use the tokenizer and config.json of the "
                "checkpoint."
            )
