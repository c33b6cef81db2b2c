# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with random weights of the models that find and rank pages.

Configuration keys, tensor names and special tokens are those of
``nvidia/llama-nemotron-embed-vl-1b-v2`` and ``nvidia/llama-nemotron-rerank-vl-1b-v2``
as docs/provenance.md has them; the sizes are small.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vllm_nemotron_vl.config.nemotron_vl_names import (
    CONTEXT_TOKEN,
    EMBED_ARCHITECTURE,
    EMBED_MODEL_TYPE,
    IMAGE_END,
    IMAGE_START,
    RERANK_ARCHITECTURE,
    RERANK_MODEL_TYPE,
)
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import Shape
from vllm_nemotron_vl.model_executor.models.nemotron_vl_retrieval_layout import (
    RANKING_PREFIX,
    retrieval_layout,
    siglip_head_tensors,
)

from .files import write_json
from .random_checkpoint import new_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTEXT = 10240


def make_retrieval_checkpoint(
    out: str | Path,
    *,
    ranks: bool,
    tile_size: int = 64,
    dtype: str = "bfloat16",
    seed: int = 0,
    vision_options: Mapping[str, Any] = MappingProxyType({}),
    text_options: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Shape]:
    """Write a checkpoint that vLLM can load; give its tensors.

    Args:
        out: Folder to create.
        ranks: Whether it ranks pages for a question, or else embeds both.
        tile_size: Side of a tile in pixels, a multiple of 32.
        dtype: Type of the stored weights.
        seed: Seed of the weights.
        vision_options: Other values of ``vision_config``.
        text_options: Other values of ``llm_config``.

    Raises:
        ValueError: The tile has another size.
        FileExistsError: ``out`` is not an empty folder.
        OSError: A file cannot be written; names it. No file stays.
    """
    # Imported here, because importing PyTorch takes seconds.
    from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_retrieval import (
        NemotronVLEmbedConfig,
        NemotronVLRerankConfig,
    )

    from .random_weights import write_tensors
    from .small_tokenizer import train_tokenizer, write_tokenizer

    if tile_size % 32:
        raise ValueError(
            f"the tile size {tile_size} is not a multiple of 32, twice the patch size"
        )
    tokenizer = train_tokenizer((IMAGE_START, IMAGE_END, CONTEXT_TOKEN))
    values = _config(ranks, tile_size, dtype, tokenizer)
    values["vision_config"] |= vision_options
    values["llm_config"] |= text_options
    kind = NemotronVLRerankConfig if ranks else NemotronVLEmbedConfig
    config = kind(**values)
    shapes = retrieval_layout(config).required
    if values["vision_config"].get("vision_use_head", True):
        head = siglip_head_tensors(config.vision_config)
        prefix = RANKING_PREFIX if ranks else ""
        shapes |= {prefix + name: shape for name, shape in head.items()}
    processor = f"LlamaNemotronVL{'Rerank' if ranks else ''}Processor"
    with new_folder(out) as folder:
        write_json(folder / "config.json", values)
        write_json(
            folder / "processor_config.json",
            {
                "auto_map": {"AutoProcessor": f"processing.{processor}"},
                "max_input_tiles": 6,
                "processor_class": processor,
                "use_thumbnail": True,
            },
        )
        write_tokenizer(folder, tokenizer, _CONTEXT)
        write_tensors(folder, shapes, dtype, seed)
    return shapes


def _config(
    ranks: bool, tile_size: int, dtype: str, tokenizer: "Tokenizer"
) -> dict[str, Any]:
    """``config.json`` with the published keys."""
    vocab_size = tokenizer.get_vocab_size()
    one_label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    own: dict[str, Any] = {
        "architectures": [EMBED_ARCHITECTURE],
        "model_type": EMBED_MODEL_TYPE,
        "max_input_tiles": 2,
        "p_max_length": 4096,
    }
    text_architecture = "LlamaBidirectionalModel"
    if ranks:
        own = {
            "architectures": [RERANK_ARCHITECTURE],
            "model_type": RERANK_MODEL_TYPE,
            "max_input_tiles": 4,
            "p_max_length": 10240,
            "prompt_template": "v1",
            "temperature": 1.0,
            **one_label,
        }
        text_architecture = "LlamaBidirectionalForSequenceClassification"
    return {
        **own,
        "auto_map": {
            "AutoConfig": "configuration.LlamaNemotronVLConfig",
            "AutoModel": f"modeling.{own['architectures'][0]}",
        },
        "bidirectional_attention": not ranks,  # all tokens see each other in both
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": tile_size,
        "img_context_token_id": tokenizer.token_to_id(CONTEXT_TOKEN),
        "passage_prefix": "passage:",
        "pooling": "avg",
        "ps_version": "v2",
        "q_max_length": 512,
        "query_prefix": "query:",
        "select_layer": -1,
        "template": "bidirectional-llama-retriever",
        "torch_dtype": dtype,
        "use_thumbnail": True,
        "vocab_size": vocab_size,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 64,
            "image_size": tile_size,
            "intermediate_size": 128,
            "layer_norm_eps": 1e-6,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "patch_size": 16,
            "torch_dtype": dtype,
        },
        "llm_config": {
            "architectures": [text_architecture],
            "auto_map": {"AutoModel": f"llama_bidirectional_model.{text_architecture}"},
            "model_type": "llama_bidirec",
            "attention_bias": False,
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 256,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pooling": "avg",
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            "vocab_size": vocab_size,
            **(one_label if ranks else {}),
        },
    }
