# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with the real layout and random weights.

Configuration keys, tensor names, special tokens and prompt format are those of
``nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1``; the sizes are free.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_nemotron_vl.config.nemotron_vl_names import ARCHITECTURE, MODEL_TYPE
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_checks import (
    check_servable,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import (
    CheckpointConfig,
    read_config,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_towers import TOWER_DIMS

from .files import write_json


def make_checkpoint(
    out: str | Path,
    *,
    tower: str = "vit_small",
    tower_layers: int = 2,
    layers: int = 2,
    hidden_size: int = 256,
    intermediate_size: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    projector_hidden_size: int = 256,
    tile_size: int = 64,
    cpe_max_size: int = 256,
    max_tiles: int = 12,
    context: int = 16384,
    ps_version: str = "v2",
    dtype: str = "bfloat16",
    seed: int = 0,
    vision_options: dict[str, Any] | None = None,
) -> CheckpointConfig:
    """Write a checkpoint that vLLM can load.

    Args:
        out: Folder to create.
        tower: ViT of C-RADIO, such as ``vit_small`` or ``vit_huge``.
        tower_layers: Blocks of the tower.
        layers: Blocks of the Llama decoder.
        hidden_size: Width of the decoder.
        intermediate_size: Width of its MLPs.
        heads: Its query heads.
        kv_heads: Its key and value heads.
        projector_hidden_size: Width of the connector.
        tile_size: Side of a tile in pixels.
        cpe_max_size: Side of the position grid in pixels.
        max_tiles: Most tiles of an image, the thumbnail not counted.
        context: Longest sequence in tokens.
        ps_version: Pixel shuffle, ``v1`` or ``v2``.
        dtype: Type of the stored weights.
        seed: Seed of the weights.
        vision_options: Further keys of ``vision_config``, such as
            ``hidden_size`` for a tower unlike C-RADIO's.

    Returns:
        The checkpoint's configuration.

    Raises:
        ValueError: The sizes do not fit each other.
        FileExistsError: ``out`` is not an empty folder.
        OSError: A file cannot be written; names it. No file stays.
    """
    if hidden_size % heads or heads % kv_heads:
        raise ValueError(
            f"--hidden-size {hidden_size} must be a multiple of --heads {heads}, "
            f"and that of --kv-heads {kv_heads}."
        )

    # Imported here, because importing PyTorch takes seconds.
    from .random_weights import write_weights
    from .small_tokenizer import BOS, EOS, train_tokenizer, write_tokenizer

    tokenizer = train_tokenizer()
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    vision_config = _vision_config(tower, tower_layers, cpe_max_size, dtype)
    vision_config |= vision_options or {}
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": {
            "AutoConfig": "configuration.Llama_Nemotron_Nano_VL_Config",
            "AutoModel": "modeling.Llama_Nemotron_Nano_VL",
            "AutoModelForCausalLM": "modeling.Llama_Nemotron_Nano_VL",
        },
        "bos_token_id": bos,
        "eos_token_id": eos,
        "downsample_ratio": 0.5,
        "force_image_size": tile_size,
        "image_tag_type": "internvl",
        "patch_size": vision_config["patch_size"],
        "projector_hidden_size": projector_hidden_size,
        "ps_version": ps_version,
        "template": "llama3.1",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vit_hidden_size": vision_config.get(
            "hidden_size", TOWER_DIMS[f"{tower}_patch16_224"][0]
        ),
        "vision_config": vision_config,
        "llm_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": hidden_size // heads,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": context,
            "mlp_bias": False,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        },
    }
    # With tiles of 512 pixels, at most 12, byte for byte the published file.
    processor = "LlamaNemotronNanoVLImageProcessor"
    preprocessor_config = {
        "image_processor_type": processor,
        "auto_map": {"AutoImageProcessor": f"image_processing.{processor}"},
        "image_size": tile_size,
        "max_num_tiles": max_tiles,
        "use_thumbnail": True,
        "do_convert_rgb": True,
        "do_rescale": True,
    }
    config = read_config(values)
    check_servable(config, preprocessor_config)

    with new_folder(out) as out:
        write_json(out / "config.json", values)
        write_json(out / "preprocessor_config.json", preprocessor_config)
        write_json(
            out / "generation_config.json",
            {"bos_token_id": bos, "eos_token_id": [eos], "do_sample": False},
        )
        write_tokenizer(out, tokenizer, context)
        write_weights(out, config, dtype, seed)
    return config


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder for a checkpoint, of which no part stays if it cannot be written.

    Raises:
        FileExistsError: ``path`` is not an empty folder.
    """
    out = Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder.")
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield out
    except BaseException:
        for file in out.iterdir():
            file.unlink()
        if created:
            out.rmdir()
        raise


def _vision_config(
    tower: str, layers: int, cpe_max_size: int, dtype: str
) -> dict[str, Any]:
    return {
        "architectures": ["RADIOModel"],
        "model_type": "",
        "auto_map": {
            "AutoConfig": "nvidia/C-RADIOv2-H--hf_model.RADIOConfig",
            "AutoModel": "nvidia/C-RADIOv2-H--hf_model.RADIOModel",
        },
        "adaptor_configs": {},
        "adaptor_names": None,
        "args": {
            "amp": True,
            "cls_token_per_teacher": True,
            "cpe_max_size": cpe_max_size,
            "dtype": dtype,
            "model": f"{tower}_patch16_224",
            "register_multiple": 8,
            "teachers": [
                {"name": name, "use_summary": name != "sam"}
                for name in ("clip", "siglip2-g", "dino_v2", "sam")
            ],
        },
        "feature_normalizer_config": None,
        "inter_feature_normalizer_config": None,
        "max_resolution": 2048,
        "num_hidden_layers": layers,
        "patch_size": 16,
        "preferred_resolution": [768, 768],
        "torch_dtype": dtype,
        "version": "c-radio_v2-h",
        "vitdet_window_size": None,
    }
