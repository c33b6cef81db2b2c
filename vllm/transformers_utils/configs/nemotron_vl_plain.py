# SPDX-License-Identifier: Apache-2.0
"""The attributes of a configuration without the imports of its classes.

Commands that start in no time read ``config.json`` this way: the classes import
all of vLLM. Only what shapes tensors and what is checked has defaults.
"""

from types import SimpleNamespace
from typing import Any

from .nemotron_vl_checks import LLAMA_DEFAULTS, TOWER_ARGS, TOWER_DIMS, check_values

# Of vLLM's RadioConfig; mean and deviation of the pixels are CLIP's.
_VISION_DEFAULTS: dict[str, Any] = {
    "qkv_bias": True,
    "norm_mean": [0.48145466, 0.4578275, 0.40821073],
    "norm_std": [0.26862954, 0.26130258, 0.27577711],
    "register_multiple": None,
    "teachers": [],
    "cls_token_per_teacher": False,
}
_DIMS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


def plain_config(values: dict[str, Any]) -> SimpleNamespace:
    """What `NemotronVLConfig.from_dict` reads from ``config.json``, as attributes.

    Args:
        values: Content of the file.

    Raises:
        ValueError: As `NemotronVLConfig.from_dict`, with the same sentence.
    """
    check_values(values)
    config = SimpleNamespace(**{"ps_version": "v1", **values})
    config.llm_config = _language_model(values["llm_config"])
    config.vision_config = _tower(values["vision_config"])
    config.vision_config.image_size = config.force_image_size
    return config


def _language_model(values: dict[str, Any]) -> SimpleNamespace:
    llm = SimpleNamespace(**{**LLAMA_DEFAULTS, **values})
    if llm.num_key_value_heads is None:
        llm.num_key_value_heads = llm.num_attention_heads
    if llm.head_dim is None:
        llm.head_dim = llm.hidden_size // llm.num_attention_heads
    return llm


def _tower(values: dict[str, Any]) -> SimpleNamespace:
    args = values["args"]
    # `check_servable` refuses an unknown name; any dimensions do until then.
    dims = TOWER_DIMS.get(args["model"], TOWER_DIMS["vit_huge_patch16_224"])
    given = {key: args[key] for key in TOWER_ARGS if args.get(key) is not None}
    vision = SimpleNamespace(
        **{
            **_VISION_DEFAULTS,
            **dict(zip(_DIMS, dims, strict=True)),
            **values,
            **given,
            "model_name": args["model"],
        }
    )
    if vision.teachers is None:
        vision.teachers = []
    return vision
