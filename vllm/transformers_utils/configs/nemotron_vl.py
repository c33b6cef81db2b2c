# SPDX-License-Identifier: Apache-2.0
"""Configuration classes of ``Llama_Nemotron_Nano_VL`` checkpoints.

The nested dicts of ``config.json`` become transformers' ``LlamaConfig`` and
vLLM's ``RadioConfig``; no Python file of the checkpoint is needed or imported.
"""

import copy
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig
from vllm.transformers_utils.configs.radio import RadioConfig

from ...config.nemotron_vl_names import MODEL_TYPE
from .nemotron_vl_schema import read_config
from .nemotron_vl_towers import DEFAULT_VIT, TOWER_ARGS, TOWER_DIMS


class DataOnlyConfig(PreTrainedConfig):
    """A configuration that keeps ``auto_map`` as data.

    transformers and vLLM load remote code if a configuration has an attribute
    ``auto_map``. It is stored under another name, and ``to_dict`` restores it.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._ignored_auto_map = kwargs.pop("auto_map", None)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        auto_map = output.pop("_ignored_auto_map", None)
        if auto_map is not None:
            output["auto_map"] = auto_map
        output.pop("text_config", None)  # vLLM's second name of llm_config
        return output

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Build from ``config.json``.

        Raises:
            ValueError: A value cannot be used.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except ValueError:
            raise
        except Exception as error:  # transformers' own error types, for example
            text = " ".join(str(error).split())
            raise ValueError(f"config.json cannot be used: {text}") from error


class NemotronVLVisionConfig(DataOnlyConfig, RadioConfig):
    """vLLM's ``RadioConfig`` read from C-RADIO's own configuration layout.

    Args:
        args: C-RADIO's training options. ``model`` names the ViT;
            ``cpe_max_size`` (pixels), ``register_multiple``, ``teachers`` and
            ``cls_token_per_teacher`` shape it. All others are kept and ignored.
        pos_embed_align_corners: Whether the corners of the position grid stay on the
            corners when the grid is resized to a tile. No published file has this key:
            Megatron-LM's example of the model aligns them
            (``megatron/core/models/vision/radio.py`` at db8cd9aa3b, 2025-06-13), and so
            did NVlabs/RADIO until cb07f55 (2025-06-28). Towers of later models have
            ``False``.
        kwargs: ``patch_size`` (pixels), ``image_size`` (pixels of a tile) and
            the remaining keys. ``hidden_size``, ``num_hidden_layers``,
            ``num_attention_heads`` and ``intermediate_size`` replace the
            dimensions that the ViT's name implies.
    """

    model_type = "nemotron_vl_radio"

    def __init__(
        self,
        args: dict[str, Any] | None = None,
        pos_embed_align_corners: bool = True,
        **kwargs: Any,
    ) -> None:
        args = dict(args or {})
        name = kwargs.pop("model_name", None)
        # transformers also builds a configuration without arguments, to compare
        # values with the defaults.
        name = args.get("model", name or DEFAULT_VIT)
        tower = {key: args[key] for key in TOWER_ARGS if args.get(key) is not None}
        # RadioConfig would raise a KeyError for an unknown name. `check_servable`
        # refuses it with a message that lists the known ones.
        known = name if name in TOWER_DIMS else DEFAULT_VIT
        super().__init__(model_name=known, **{**kwargs, **tower})
        self.model_name = name
        self.args = args
        self.pos_embed_align_corners = pos_embed_align_corners


class NemotronVLConfig(DataOnlyConfig):
    """Composite configuration of ``Llama_Nemotron_Nano_VL``.

    Args:
        llm_config: ``LlamaConfig`` or its dict. vLLM finds it as
            ``text_config`` through its attribute mapping.
        vision_config: ``NemotronVLVisionConfig`` or its dict.
        force_image_size: Side of a tile in pixels.
        downsample_ratio: Linear factor of the pixel shuffle (0.5 turns 2x2
            patches into one image token).
        vit_hidden_size: Width of the tower.
        projector_hidden_size: Width of the connector's hidden layer.
        kwargs: ``ps_version``, the pixel shuffle: ``"v1"`` (rows and columns swapped)
            or ``"v2"``. All other keys of ``config.json`` are kept and saved again.

    The layout is that of the published ``config.json`` of
    ``nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1``.
    """

    model_type = MODEL_TYPE
    # An attribute of the class, so that a file without the key is saved without it.
    ps_version = "v1"
    sub_configs = {"llm_config": LlamaConfig, "vision_config": NemotronVLVisionConfig}

    def __init__(
        self,
        llm_config: dict[str, Any] | PreTrainedConfig | None = None,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        *,
        force_image_size: int = 512,
        downsample_ratio: float = 0.5,
        vit_hidden_size: int = 1280,
        projector_hidden_size: int = 4096,
        **kwargs: Any,
    ) -> None:
        self.llm_config = sub_config(LlamaConfig, llm_config)
        self.vision_config = sub_config(NemotronVLVisionConfig, vision_config)
        self.vision_config.image_size = force_image_size
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.vit_hidden_size = vit_hidden_size
        self.projector_hidden_size = projector_hidden_size
        kwargs.pop("text_config", None)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Build from ``config.json``.

        Raises:
            ValueError: A required key is missing, not of its type or a size
                that no model has.
        """
        read_config(config_dict)  # checks keys, types and sizes
        return super().from_dict(config_dict, **kwargs)


def sub_config(
    config_cls: type[PreTrainedConfig], value: dict[str, Any] | PreTrainedConfig | None
) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = copy.deepcopy(value or {})
    values.pop("model_type", None)
    return config_cls(**values)
