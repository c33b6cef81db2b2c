# SPDX-License-Identifier: Apache-2.0
"""The keys of ``config.json`` that this package reads: types, ranges and defaults.

These pydantic models check the file for `NemotronVLConfig`. They also replace it in
commands that must not import PyTorch, transformers and vLLM, which takes seconds.
Keys without a field here are kept as attributes.
"""

from typing import Any, get_args

from annotated_types import Le
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from ...config.nemotron_vl_names import MODEL_TYPE
from .nemotron_vl_towers import DEFAULT_VIT, TOWER_ARGS, TOWER_DIMS

# Names of types in messages, by pydantic's types of errors.
_TYPES = {
    "int_type": "int",
    "bool_type": "bool",
    "string_type": "str",
    "model_type": "dict",
    "model_attributes_type": "dict",
}
_DIMS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


def _up_to(largest: int) -> Any:
    """A positive whole number.

    No model comes near the largest values here. Modules are built before a tensor
    of the checkpoint is compared with them, so a larger value could exhaust the
    machine's memory.
    """
    return Field(ge=1, le=largest)


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="allow", from_attributes=True, protected_namespaces=()
    )


class LanguageModelSizes(_Section):
    """Sizes of the language model, also in a built configuration."""

    vocab_size: StrictInt = _up_to(1 << 24)
    hidden_size: StrictInt = _up_to(1 << 20)
    intermediate_size: StrictInt = _up_to(1 << 20)
    num_hidden_layers: StrictInt = _up_to(1024)
    num_attention_heads: StrictInt = _up_to(4096)
    num_key_value_heads: StrictInt = _up_to(4096)
    head_dim: StrictInt = _up_to(4096)
    max_position_embeddings: StrictInt = _up_to(1 << 22)


# Values of transformers' LlamaConfig for sizes that `llm_config` leaves out.
_LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


class LanguageModel(LanguageModelSizes):
    """``llm_config``, with the defaults of transformers' ``LlamaConfig``."""

    attention_bias: StrictBool = False
    mlp_bias: StrictBool = False
    tie_word_embeddings: StrictBool = False
    hidden_act: StrictStr = "silu"
    rms_norm_eps: InstanceOf[float] = 1e-6
    rope_scaling: InstanceOf[dict] | None = None
    rope_parameters: InstanceOf[dict] | None = None
    quantization_config: InstanceOf[dict] | None = None

    @model_validator(mode="before")
    @classmethod
    def _derive_sizes(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = _LLAMA_SIZES | values
        width, heads = values["hidden_size"], values["num_attention_heads"]
        if values.get("num_key_value_heads") is None:
            values["num_key_value_heads"] = heads
        whole = all(isinstance(x, int) and x > 0 for x in (width, heads))
        if values.get("head_dim") is None and whole:
            values["head_dim"] = max(1, width // heads)
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> "LanguageModel":
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise ValueError(
                f"llm_config.hidden_size = {width} is not supported; it must be a "
                f"multiple of num_attention_heads {heads}."
            )
        return self


class TowerSizes(_Section):
    """Sizes of the tower and its position grid, also in a built configuration."""

    patch_size: StrictInt = _up_to(1024)
    hidden_size: StrictInt = _up_to(1 << 16)
    intermediate_size: StrictInt = _up_to(1 << 20)
    num_hidden_layers: StrictInt = _up_to(1024)
    num_attention_heads: StrictInt = _up_to(1024)
    pos_embed_align_corners: StrictBool = True


class TowerArgs(_Section):
    """C-RADIO's training options, of which `TOWER_ARGS` shape the tower."""

    model: StrictStr
    cpe_max_size: StrictInt

    def get(self, name: str) -> Any:
        """An option or ``None``, as `dict.get` of a built configuration's args."""
        return getattr(self, name, None)


class Tower(TowerSizes):
    """``vision_config``, with the defaults of vLLM's ``RadioConfig``.

    The name of the ViT, ``args.model``, implies the sizes that are not given.
    """

    args: TowerArgs
    model_name: Any = None  # set to args.model
    image_size: Any = None  # set to force_image_size, pixels
    qkv_bias: Any = True
    # CLIP's mean and standard deviation.
    norm_mean: Any = [0.48145466, 0.4578275, 0.40821073]
    norm_std: Any = [0.26862954, 0.26130258, 0.27577711]
    register_multiple: Any = None
    teachers: Any = []
    cls_token_per_teacher: Any = False

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_vit(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        args = values.get("args")
        name = args.get("model") if isinstance(args, dict) else None
        # `check_servable` refuses an unknown name later, with a better message.
        known = name if isinstance(name, str) and name in TOWER_DIMS else DEFAULT_VIT
        return dict(zip(_DIMS, TOWER_DIMS[known], strict=True)) | values

    @model_validator(mode="after")
    def _read_args(self) -> "Tower":
        self.model_name = self.args.model
        for name in TOWER_ARGS:
            if (value := self.args.get(name)) is not None:
                setattr(self, name, value)
        if self.teachers is None:
            self.teachers = []
        return self


class RetrievalSizes(_Section):
    """Sizes to check in a configuration of the models that find and rank pages."""

    force_image_size: StrictInt = _up_to(4096)
    vision_config: TowerSizes
    llm_config: LanguageModelSizes


class Sizes(RetrievalSizes):
    """Sizes to check in a built `NemotronVLConfig`, after ``--hf-overrides``."""

    projector_hidden_size: StrictInt = _up_to(1 << 20)


class CheckpointConfig(Sizes):
    """All of ``config.json``."""

    vision_config: Tower
    llm_config: LanguageModel
    downsample_ratio: StrictInt | InstanceOf[float]
    vit_hidden_size: StrictInt
    ps_version: Any = "v1"
    quantization_config: InstanceOf[dict] | None = None

    @model_validator(mode="after")
    def _set_tile_size(self) -> "CheckpointConfig":
        self.vision_config.image_size = self.force_image_size
        return self


def read_config(values: dict[str, Any]) -> CheckpointConfig:
    """Read the content of ``config.json``.

    Returns:
        An object with the attributes of `NemotronVLConfig`.

    Raises:
        ValueError: A required key is missing, or a value has a wrong type or a
            size that no model has. Names the key.
    """
    return _validate(CheckpointConfig, values)


def check_sizes(config: Any) -> None:
    """Check the sizes of a configuration object.

    Raises:
        ValueError: As of `read_config`.
    """
    _validate(Sizes, config)


def check_retrieval_sizes(config: Any) -> None:
    """Check the sizes of a configuration of the models that find and rank pages.

    Raises:
        ValueError: As of `read_config`.
    """
    _validate(RetrievalSizes, config)


def _validate(model: type[BaseModel], value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"config.json: {_sentence(error)}") from None


_KEYS = {
    key
    for section in (CheckpointConfig, LanguageModel, Tower, TowerArgs)
    for key in section.model_fields
}


def _sentence(error: ValidationError) -> str:
    """What is wrong with the first wrong key."""
    # For a key with several types, the location ends with the type that failed.
    found = [
        ([key for key in map(str, one["loc"]) if key in _KEYS], one)
        for one in error.errors(include_url=False)
    ]
    keys, first = found[0]
    path, value = ".".join(keys) or "the file", first["input"]
    allowed, null = _allowed(keys)
    match first["type"]:
        case "missing":
            return (
                f"the key {path!r} is missing. A {MODEL_TYPE} checkpoint has it; "
                "download the file again or restore the key."
            )
        case "greater_than_equal" | "less_than_equal":
            return (
                f"{path} = {value!r} is not supported; it must be a whole number "
                f"{allowed}."
            )
        case "value_error":
            return str(first["ctx"]["error"])
    types = [_type_of(one) for its_keys, one in found if its_keys == keys]
    kinds = " or ".join([*types, *["null"] * null])
    if allowed:
        kinds += f", {allowed}"
    return f"{path} must be of type {kinds}, but is {value!r}."


def _allowed(keys: list[str]) -> tuple[str, bool]:
    """The range of a key as text, if it has one, and whether it may be null."""
    section: Any = CheckpointConfig
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    if not keys:
        return "", False
    field = section.model_fields[keys[-1]]
    bounds = [bound.le for bound in field.metadata if isinstance(bound, Le)]
    text = f"from 1 to {bounds[0]}" if bounds else ""
    return text, type(None) in get_args(field.annotation)


def _type_of(error: Any) -> str:
    """The type that the value should have."""
    return _TYPES.get(error["type"]) or error["ctx"]["class"]
