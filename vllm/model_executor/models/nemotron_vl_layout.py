# SPDX-License-Identifier: Apache-2.0
"""Tensor names and shapes of a ``Llama_Nemotron_Nano_VL`` checkpoint.

Derived from its configuration alone; imports neither torch nor transformers
nor vLLM.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ...config.nemotron_vl_names import RETRIEVAL_MODEL_TYPES

Shape = tuple[int, ...]

# A `NemotronVLConfig` or `CheckpointConfig`, or a part of it.
Config = Any

TOWER = "vision_model.radio_model."
LANGUAGE_MODEL = "language_model."
ENCODER = ("vision_model.", "mlp1.")

# Linear layers of a block of the tower.
TOWER_LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

# Buffers that some checkpoints contain. Their values follow from the configuration:
# the class tokens of C-RADIO's summary, and the rotary frequencies in old exports
# of Llama.
IGNORED_SUFFIXES = ("radio_model.summary_idxs", "rotary_emb.inv_freq")

_KV_CACHE_SCALES = ("k_scale", "v_scale", "q_scale", "prob_scale", "output_scale")

# Optional mean and standard deviation of the pixels. The default is CLIP's.
CONDITIONER_TENSORS: dict[str, Shape] = {
    TOWER + "input_conditioner.norm_mean": (3, 1, 1),
    TOWER + "input_conditioner.norm_std": (3, 1, 1),
}


class Layout(NamedTuple):
    """The tensors of a checkpoint.

    Attributes:
        required: Those of every unquantised checkpoint, by name.
        optional: Those that some checkpoints have besides.
        language_model: How the names of the language model begin.
        encoder: How those of the tower and of the connector begin.
        is_quantised: Whether the configuration declares quantised tensors.
    """

    required: dict[str, Shape]
    optional: dict[str, Shape]
    language_model: str
    encoder: tuple[str, ...]
    is_quantised: bool


def num_class_tokens(vision_config: Config) -> int:
    """Class tokens of the tower: one, or one for each distinct teacher."""
    if not vision_config.cls_token_per_teacher:
        return 1
    return len({teacher["name"] for teacher in vision_config.teachers})


def num_prefix_tokens(vision_config: Config) -> int:
    """Class and register tokens before the patches.

    Register tokens fill the number up to the next larger multiple of
    ``register_multiple``. If there are already 8 class tokens, for example, and the
    multiple is 8, then 8 register tokens are added, as in C-RADIO's code
    (https://github.com/NVlabs/RADIO/blob/b0f47ac/radio/cls_token.py, 2025-05-26).
    """
    tokens = num_class_tokens(vision_config)
    multiple = vision_config.register_multiple
    return tokens + multiple - tokens % multiple if multiple else tokens


def tower_tensors(config: Config) -> dict[str, Shape]:
    """Tensors of the C-RADIO tower, without the optional input conditioner."""
    vision = config.vision_config
    width, hidden, patch = (
        vision.hidden_size,
        vision.intermediate_size,
        vision.patch_size,
    )
    grid = vision.cpe_max_size // patch
    generator = TOWER + "model.patch_generator."
    shapes: dict[str, Shape] = {
        generator + "cls_token.token": (num_prefix_tokens(vision), width),
        generator + "pos_embed": (1, grid * grid, width),
        generator + "embedder.weight": (width, 3 * patch * patch),
    }
    for layer in range(vision.num_hidden_layers):
        block = f"{TOWER}model.blocks.{layer}."
        shapes |= linear_tensors(
            block + "attn.qkv", width, 3 * width, bias=vision.qkv_bias
        )
        shapes |= linear_tensors(block + "attn.proj", width, width)
        shapes |= linear_tensors(block + "mlp.fc1", width, hidden)
        shapes |= linear_tensors(block + "mlp.fc2", hidden, width)
        for norm in ("norm1", "norm2"):
            shapes |= {block + f"{norm}.{p}": (width,) for p in ("weight", "bias")}
    return shapes


def connector_tensors(config: Config) -> dict[str, Shape]:
    """Tensors of the connector (``mlp1``): LayerNorm, Linear, GELU, Linear."""
    merged = config.vit_hidden_size * round(1 / config.downsample_ratio) ** 2
    outer = config.llm_config.hidden_size
    return mlp_tensors(merged, config.projector_hidden_size, outer)


def mlp_tensors(inputs: int, hidden: int, outputs: int) -> dict[str, Shape]:
    """Tensors of a connector with these widths."""
    return {
        "mlp1.0.weight": (inputs,),
        "mlp1.0.bias": (inputs,),
        **linear_tensors("mlp1.1", inputs, hidden),
        **linear_tensors("mlp1.3", hidden, outputs),
    }


def head_size(llm: Config) -> int:
    """Width of an attention head of the Llama decoder."""
    explicit = getattr(llm, "head_dim", None)
    return explicit or llm.hidden_size // llm.num_attention_heads


def language_model_tensors(config: Config) -> dict[str, Shape]:
    """Tensors of the Llama decoder under ``language_model.``."""
    llm = config.llm_config
    width, hidden, vocab = llm.hidden_size, llm.intermediate_size, llm.vocab_size
    q_width = llm.num_attention_heads * head_size(llm)
    kv_width = llm.num_key_value_heads * head_size(llm)
    model = "language_model.model."
    shapes: dict[str, Shape] = {
        model + "embed_tokens.weight": (vocab, width),
        model + "norm.weight": (width,),
    }
    if not llm.tie_word_embeddings:
        shapes["language_model.lm_head.weight"] = (vocab, width)
    for layer in range(llm.num_hidden_layers):
        block = f"{model}layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[block + norm + ".weight"] = (width,)
        for name, outputs in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            shapes |= linear_tensors(
                block + f"self_attn.{name}_proj", width, outputs, llm.attention_bias
            )
        shapes |= linear_tensors(
            block + "self_attn.o_proj", q_width, width, llm.attention_bias
        )
        for name in ("gate_proj", "up_proj"):
            shapes |= linear_tensors(block + f"mlp.{name}", width, hidden, llm.mlp_bias)
        shapes |= linear_tensors(block + "mlp.down_proj", hidden, width, llm.mlp_bias)
    return shapes


def checkpoint_tensors(config: Config) -> dict[str, Shape]:
    """Every tensor that an unquantised checkpoint must have, with its shape."""
    return {
        **tower_tensors(config),
        **connector_tensors(config),
        **language_model_tensors(config),
    }


def chat_layout(config: Config) -> Layout:
    """The tensors of a checkpoint of the chat model."""
    return Layout(
        checkpoint_tensors(config),
        CONDITIONER_TENSORS,
        LANGUAGE_MODEL,
        ENCODER,
        is_any_quantised(config),
    )


def tensor_parallel_problems(
    config: Config, tp: int, encoder_data_parallel: bool
) -> list[str]:
    """Messages about sizes that tensor parallel cannot divide.

    Args:
        config: The composite configuration of one of the three models.
        tp: Ranks of tensor parallel.
        encoder_data_parallel: Each rank has the whole tower and connector.
    """
    llm = config.llm_config
    sizes = {
        "llm_config.num_attention_heads": llm.num_attention_heads,
        "llm_config.intermediate_size": llm.intermediate_size,
    }
    if not encoder_data_parallel:
        sizes |= _encoder_sizes(config)
    problems = [
        f"{name} = {size} is not divisible by {tp} ranks."
        for name, size in sizes.items()
        if size % tp
    ]
    kv_heads = llm.num_key_value_heads
    if kv_heads % tp and tp % kv_heads:
        problems.append(
            f"llm_config.num_key_value_heads = {kv_heads} neither divides {tp} ranks "
            "nor is divided by them."
        )
    return problems


def _encoder_sizes(config: Config) -> dict[str, int]:
    """Sizes of the tower and the connector that vLLM divides among ranks."""
    vision = config.vision_config
    sizes = {"vision_config's MLP width": vision.intermediate_size}
    if config.model_type in RETRIEVAL_MODEL_TYPES.values():
        # Each rank has the whole connector.
        return sizes | {"vision_config.num_attention_heads": vision.num_attention_heads}
    # If the ranks do not divide C-RADIO's heads, vLLM gives all heads to each rank.
    return sizes | {"projector_hidden_size": config.projector_hidden_size}


def is_any_quantised(config: Config) -> bool:
    """Whether a composite configuration, or its Llama's, declares quantised tensors."""
    return is_quantised(config) or is_quantised(config.llm_config)


def is_quantised(config: Config) -> bool:
    """Whether a configuration declares quantised tensors."""
    return getattr(config, "quantization_config", None) is not None


def quantised_weight(name: str, known: Mapping[str, Shape]) -> str | None:
    """The weight that a tensor of a quantised checkpoint belongs to.

    Args:
        name: Such as ``mlp1.1.weight_scale`` or ``mlp1.1.qweight``.
        known: The tensors of the unquantised checkpoint.

    Returns:
        Such as ``mlp1.1.weight``; ``""`` for scales of the KV cache; ``None`` if
        the unquantised checkpoint has the tensor, too, or if no layer has it.
    """
    layer, _, kind = name.rpartition(".")
    if name in known:
        return None
    if kind in _KV_CACHE_SCALES:
        return ""
    return f"{layer}.weight" if f"{layer}.weight" in known else None


def tensor_problem(
    name: str,
    shape: Shape,
    is_floating_point: bool,
    known: Mapping[str, Shape],
    quantised: bool,
) -> Literal["unknown", "misshapen"] | None:
    """What is wrong with a tensor of a checkpoint, if anything.

    The shapes of a quantised layer's tensors depend on its method, and are not judged.

    Args:
        name: Name of the tensor in the checkpoint.
        shape: Its shape.
        is_floating_point: Whether its values are floating-point numbers. A quantised
            checkpoint may have packed integers in the place of a weight.
        known: The tensors of the unquantised checkpoint.
        quantised: Whether a part of the checkpoint is quantised.
    """
    if quantised and quantised_weight(name, known) is not None:
        return None
    if name not in known:
        return None if name.endswith(IGNORED_SUFFIXES) else "unknown"
    is_packed = quantised and not is_floating_point
    return None if is_packed or tuple(shape) == known[name] else "misshapen"


def linear_tensors(
    name: str, inputs: int, outputs: int, bias: bool = True
) -> dict[str, Shape]:
    """Tensors of a linear layer."""
    shapes: dict[str, Shape] = {name + ".weight": (outputs, inputs)}
    if bias:
        shapes[name + ".bias"] = (outputs,)
    return shapes
