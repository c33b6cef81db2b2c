# SPDX-License-Identifier: Apache-2.0
"""Tensor names and shapes of the models that find and rank pages.

Their sources are in docs/provenance.md. Derived from the configuration alone.
"""

from collections.abc import Iterable

from ...config.nemotron_vl_names import RERANK_MODEL_TYPE
from .nemotron_vl_layout import (
    ENCODER,
    LANGUAGE_MODEL,
    Config,
    Layout,
    Shape,
    is_any_quantised,
    language_model_tensors,
    linear_tensors,
    mlp_tensors,
)

# Of all parts of a ranking model, whose head is beside them.
RANKING_PREFIX = "model."
SCORE = "score.weight"

TOWER = "vision_model.vision_model."


def retrieval_layout(config: Config) -> Layout:
    """The tensors of a checkpoint, without those of heads that nothing uses.

    Args:
        config: A `NemotronVLEmbedConfig`, which is also that of a ranking model.
    """
    llm, vision = config.llm_config, config.vision_config
    merged = vision.hidden_size * round(1 / config.downsample_ratio) ** 2
    required = (
        _tower_tensors(vision)
        | mlp_tensors(merged, llm.hidden_size, llm.hidden_size)
        | {
            name.replace(f"{LANGUAGE_MODEL}model.", LANGUAGE_MODEL): shape
            for name, shape in language_model_tensors(config).items()
        }
    )
    required.pop(f"{LANGUAGE_MODEL}lm_head.weight", None)
    prefix = ""
    if config.model_type == RERANK_MODEL_TYPE:
        prefix = RANKING_PREFIX
        required = {prefix + name: shape for name, shape in required.items()}
        required[SCORE] = (llm.num_labels, llm.hidden_size)
    return Layout(
        required,
        {},
        prefix + LANGUAGE_MODEL,
        tuple(prefix + part for part in ENCODER),
        is_any_quantised(config),
    )


def linear_layers(layout: Layout, encoder: bool) -> list[str]:
    """Names in the checkpoint of the linear layers, without the head.

    Args:
        layout: As of `retrieval_layout`.
        encoder: Whether they include those of the tower and the connector.
    """
    return [
        name.removesuffix(".weight")
        for name, shape in layout.required.items()
        if len(shape) == 2
        and "embed" not in name
        and name != SCORE
        and (encoder or name.startswith(layout.language_model))
    ]


def with_aliases(layers: Iterable[str]) -> list[str]:
    """Names of layers, and other names that checkpoints and adapters have for them.

    transformers 5 writes SigLIP's without the inner part, and a Llama that has a head
    of its own is a ``model`` beside it.
    """
    return [
        name
        for layer in layers
        for name in dict.fromkeys(
            (
                layer,
                layer.replace(TOWER, "vision_model.", 1),
                layer.replace(LANGUAGE_MODEL, f"{LANGUAGE_MODEL}model.", 1),
            )
        )
    ]


def _tower_tensors(vision: Config) -> dict[str, Shape]:
    """Those of SigLIP that the models use."""
    width, patch = vision.hidden_size, vision.patch_size
    embeddings = TOWER + "embeddings."
    shapes: dict[str, Shape] = {
        embeddings + "patch_embedding.weight": (width, 3, patch, patch),
        embeddings + "patch_embedding.bias": (width,),
        embeddings + "position_embedding.weight": (
            (vision.image_size // patch) ** 2,
            width,
        ),
        **_norm(TOWER + "post_layernorm", width),
    }
    for layer in range(vision.num_hidden_layers):
        block = f"{TOWER}encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            shapes |= linear_tensors(f"{block}self_attn.{name}_proj", width, width)
        shapes |= _mlp(block, vision)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= _norm(block + norm, width)
    return shapes


def siglip_head_tensors(vision: Config) -> dict[str, Shape]:
    """Those of SigLIP's pooling head, which the embedding model's checkpoint has."""
    width, head = vision.hidden_size, TOWER + "head."
    return {
        head + "probe": (1, 1, width),
        head + "attention.in_proj_weight": (3 * width, width),
        head + "attention.in_proj_bias": (3 * width,),
        **linear_tensors(head + "attention.out_proj", width, width),
        **_norm(head + "layernorm", width),
        **_mlp(head, vision),
    }


def _mlp(part: str, vision: Config) -> dict[str, Shape]:
    width, hidden = vision.hidden_size, vision.intermediate_size
    return linear_tensors(f"{part}mlp.fc1", width, hidden) | linear_tensors(
        f"{part}mlp.fc2", hidden, width
    )


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.{kind}": (width,) for kind in ("weight", "bias")}
