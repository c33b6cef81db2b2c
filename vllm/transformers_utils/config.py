# SPDX-License-Identifier: Apache-2.0
"""Native configuration of ``Llama_Nemotron_Nano_VL`` checkpoints.

The nested dicts of ``config.json`` become transformers' ``LlamaConfig`` and
vLLM's ``RadioConfig``; no Python file of the checkpoint is needed or imported.
"""

import copy
from operator import attrgetter
from typing import Any

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig
from vllm.transformers_utils.config import _CONFIG_ATTRS_MAPPING
from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME, RadioConfig

NEMOTRON_VL_MODEL_TYPE = "Llama_Nemotron_Nano_VL"

# Any known name serves where transformers builds a configuration without
# arguments to find out which values differ from the defaults.
_DEFAULT_VIT = "vit_huge_patch16_224"

# C-RADIO's training options that shape the tower. The dict holds about a
# hundred more, which are kept and ignored.
_TOWER_ARGS = ("cpe_max_size", "register_multiple", "teachers", "cls_token_per_teacher")

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
_RATIOS = (1, 0.5, 0.25)  # of the pixel shuffle
_LARGEST_GRID = 512  # patches in a row of the position embeddings
_MOST_PREFIX_TOKENS = 1024


class _DataOnlyConfig(PreTrainedConfig):
    """Configuration whose ``auto_map`` is data to save again, never code to load.

    transformers and vLLM look for remote code in the attribute ``auto_map``;
    it is kept under another name and written back by ``to_dict``.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._ignored_auto_map = kwargs.pop("auto_map", None)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        auto_map = output.pop("_ignored_auto_map", None)
        if auto_map is not None:
            output["auto_map"] = auto_map
        return output


class NemotronVLVisionConfig(_DataOnlyConfig, RadioConfig):
    """vLLM's ``RadioConfig`` read from C-RADIO's own configuration layout.

    Args:
        args: C-RADIO's training options. ``model`` names the ViT;
            ``cpe_max_size`` (pixels), ``register_multiple``, ``teachers`` and
            ``cls_token_per_teacher`` shape it; all others are kept unread.
        kwargs: ``patch_size`` (pixels), ``image_size`` (pixels of a tile) and
            the remaining keys. ``hidden_size``, ``num_hidden_layers``,
            ``num_attention_heads`` and ``intermediate_size`` replace the
            dimensions that the ViT's name implies.
    """

    model_type = "nemotron_vl_radio"

    def __init__(self, args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        args = dict(args or {})
        name = kwargs.pop("model_name", None)
        name = args.get("model", name or _DEFAULT_VIT)
        tower = {key: args[key] for key in _TOWER_ARGS if args.get(key) is not None}
        # An unknown name is refused by `check_servable`, which can say more
        # than the KeyError that RadioConfig would raise here.
        known = name if name in VIT_TIMM_DIM_BY_NAME else _DEFAULT_VIT
        super().__init__(model_name=known, **{**kwargs, **tower})
        self.model_name = name
        self.args = args


class NemotronVLConfig(_DataOnlyConfig):
    """Composite configuration of ``Llama_Nemotron_Nano_VL``.

    Args:
        llm_config: ``LlamaConfig`` or its dict. vLLM finds it as
            ``text_config`` through its attribute mapping.
        vision_config: ``NemotronVLVisionConfig`` or its dict.
        force_image_size: Side of a tile in pixels.
        downsample_ratio: Linear factor of the pixel shuffle (0.5 turns 2x2
            patches into one image token).
        ps_version: Pixel shuffle, ``"v1"`` (rows and columns swapped) or ``"v2"``.
        vit_hidden_size: Width of the tower.
        projector_hidden_size: Width of the connector's hidden layer.
        kwargs: All other keys of ``config.json``; kept and saved again.

    The layout is that of the published ``config.json`` of
    ``nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1``.
    """

    model_type = NEMOTRON_VL_MODEL_TYPE
    sub_configs = {"llm_config": LlamaConfig, "vision_config": NemotronVLVisionConfig}

    def __init__(
        self,
        llm_config: dict[str, Any] | PreTrainedConfig | None = None,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        *,
        force_image_size: int = 512,
        downsample_ratio: float = 0.5,
        ps_version: str = "v1",
        vit_hidden_size: int = 1280,
        projector_hidden_size: int = 4096,
        **kwargs: Any,
    ) -> None:
        self.llm_config = _sub_config(LlamaConfig, llm_config)
        self.vision_config = _sub_config(NemotronVLVisionConfig, vision_config)
        self.vision_config.image_size = force_image_size
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.ps_version = ps_version
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
        _check_required_keys(config_dict)
        _check_given_sizes(config_dict)
        try:
            return super().from_dict(config_dict, **kwargs)
        except ValueError:
            raise
        except Exception as error:  # transformers' checks have types of their own
            text = " ".join(str(error).split())
            raise ValueError(f"config.json cannot be used: {text}") from error

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("text_config", None)  # vLLM's second name of llm_config
        return output


def _sub_config(
    config_cls: type[PreTrainedConfig], value: dict[str, Any] | PreTrainedConfig | None
) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = copy.deepcopy(value or {})
    values.pop("model_type", None)
    return config_cls(**values)


def _check_required_keys(config: dict[str, Any]) -> None:
    required: dict[str, type | tuple[type, ...]] = {
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
                    f"{NEMOTRON_VL_MODEL_TYPE} checkpoint has it; download the "
                    "file again or restore the key."
                )
            value = value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
            raise ValueError(
                f"config.json: {path} must be of type {' or '.join(names)}, "
                f"but is {value!r}."
            )


def _check_given_sizes(config: dict[str, Any]) -> None:
    # transformers divides by some of them.
    for path, largest in _LARGEST.items():
        section, _, key = path.rpartition(".")
        value = (config[section] if section else config).get(key)
        if value is not None:
            _check_size(path, value, 1, largest)


def check_sizes(config: PreTrainedConfig) -> None:
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
    config: PreTrainedConfig, preprocessor_config: dict[str, Any] | None = None
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

    if vision.model_name not in VIT_TIMM_DIM_BY_NAME:
        names = ", ".join(VIT_TIMM_DIM_BY_NAME)
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


def register_nemotron_vl_config() -> None:
    """Make transformers and vLLM read the model type with the classes above."""
    _CONFIG_ATTRS_MAPPING["llm_config"] = "text_config"
    AutoConfig.register(NEMOTRON_VL_MODEL_TYPE, NemotronVLConfig, exist_ok=True)
