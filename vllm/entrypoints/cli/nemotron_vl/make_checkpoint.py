# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl make-checkpoint``: the real layout with random weights.

Configuration keys, tensor names, special tokens and prompt format are those of
``nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1``; the sizes are free and the weights
drawn from a seed, so that everything but the answers can be tried.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from ....model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    Shape,
    checkpoint_tensors,
)
from ....transformers_utils.config import (
    NEMOTRON_VL_MODEL_TYPE,
    VIT_TIMM_DIM_BY_NAME,
    NemotronVLConfig,
    check_servable,
)

_TOWERS = [name.removesuffix("_patch16_224") for name in VIT_TIMM_DIM_BY_NAME]
_TEMPLATE = "transformers_utils/chat_templates/template_nemotron_vl.jinja"
_SHARD_BYTES = 4 * 2**30

_BOS, _EOS = "<|begin_of_text|>", "<|eot_id|>"
_IMAGE_TOKENS = ("<image>", "<img>", "</img>")
_SPECIAL_TOKENS = (
    _BOS,
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    _EOS,
    *_IMAGE_TOKENS,
)

# Llama 3 splits words, runs of at most three digits, punctuation and spaces.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Gives the tokenizer a few merges; the bytes alone would do.
_TOKENIZER_TEXT = (
    "system user assistant Read the text in this image. What is the total of "
    "the invoice? Describe the picture. How many characters are there? The "
    "table shows the value of each item and the sum of all items in the list."
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "make-checkpoint",
        help="write a checkpoint with the real layout and random weights",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--tower", choices=_TOWERS, default="vit_small")
    parser.add_argument("--tower-layers", type=int, metavar="N", default=2)
    parser.add_argument("--layers", type=int, metavar="N", default=2)
    parser.add_argument("--hidden-size", type=int, metavar="N", default=256)
    parser.add_argument("--intermediate-size", type=int, metavar="N", default=512)
    parser.add_argument("--heads", type=int, metavar="N", default=4)
    parser.add_argument("--kv-heads", type=int, metavar="N", default=2)
    parser.add_argument("--projector-hidden-size", type=int, metavar="N", default=256)
    parser.add_argument("--tile-size", type=int, metavar="PIXELS", default=64)
    parser.add_argument("--cpe-max-size", type=int, metavar="PIXELS", default=256)
    parser.add_argument("--max-tiles", type=int, metavar="N", default=12)
    parser.add_argument("--context", type=int, metavar="TOKENS", default=16384)
    parser.add_argument("--ps-version", choices=["v1", "v2"], default="v2")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    options = {k: v for k, v in vars(args).items() if k not in ("out", "run")}
    config = make_checkpoint(args.out, **options)
    tensors = checkpoint_tensors(config)
    count = sum(torch.Size(shape).numel() for shape in tensors.values())
    print(f"{args.out}: {len(tensors)} tensors, {count / 1e6:.1f} M parameters")
    return 0


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
) -> NemotronVLConfig:
    """Write a checkpoint that vLLM, and the reference in the tests, can load.

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
        max_tiles: Most tiles of a picture, the thumbnail not counted.
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
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder.")
    if hidden_size % heads or heads % kv_heads:
        raise ValueError(
            f"--hidden-size {hidden_size} must be a multiple of --heads {heads}, "
            f"and that of --kv-heads {kv_heads}."
        )

    tokenizer = _train_tokenizer()
    bos, eos = tokenizer.token_to_id(_BOS), tokenizer.token_to_id(_EOS)
    vision_config = _vision_config(tower, tower_layers, cpe_max_size, dtype)
    vision_config |= vision_options or {}
    values: dict[str, Any] = {
        "architectures": ["Llama_Nemotron_Nano_VL"],
        "model_type": NEMOTRON_VL_MODEL_TYPE,
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
            "hidden_size", VIT_TIMM_DIM_BY_NAME[f"{tower}_patch16_224"][0]
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
    preprocessor_config = {
        "auto_map": {"AutoImageProcessor": "image_processing.NemotronImageProcessor"},
        "image_size": tile_size,
        "max_num_tiles": max_tiles,
        "use_thumbnail": True,
    }
    config = NemotronVLConfig.from_dict(values)
    check_servable(config, preprocessor_config)

    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", values)
    _write_json(out / "preprocessor_config.json", preprocessor_config)
    _write_json(
        out / "generation_config.json",
        {"bos_token_id": bos, "eos_token_id": [eos], "do_sample": False},
    )
    _write_tokenizer(out, tokenizer, context)
    _write_weights(out, config, getattr(torch, dtype), seed)
    return config


def tiny_checkpoint(folder: str | Path = "build/nemotron_vl_tiny") -> str:
    """Path of the smallest checkpoint with random weights, made if missing."""
    if not (Path(folder) / "config.json").exists():
        make_checkpoint(folder)
    return str(folder)


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


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=384,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TOKENIZER_TEXT], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in _SPECIAL_TOKENS]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_BOS} $A",
        pair=f"{_BOS} $A $B",
        special_tokens=[(_BOS, tokenizer.token_to_id(_BOS))],
    )
    return tokenizer


def _write_tokenizer(out: Path, tokenizer: Tokenizer, context: int) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    template = Path(__file__).parents[3] / _TEMPLATE
    _write_json(
        out / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {"content": token, "special": True}
                for token in _SPECIAL_TOKENS
            },
            "bos_token": _BOS,
            "chat_template": template.read_text(),
            "clean_up_tokenization_spaces": False,
            "eos_token": _EOS,
            "model_max_length": context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _write_weights(
    out: Path, config: NemotronVLConfig, dtype: torch.dtype, seed: int
) -> None:
    shapes = checkpoint_tensors(config) | CONDITIONER_TENSORS
    sizes = {name: torch.Size(s).numel() * dtype.itemsize for name, s in shapes.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: _draw(name, shapes[name], config, seed).to(dtype) for name in names
        }
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index},
        )


def _draw(name: str, shape: Shape, config: NemotronVLConfig, seed: int) -> torch.Tensor:
    """Values of one tensor; they depend on its name and the seed only."""
    if name.endswith("norm_mean"):
        return torch.tensor(config.vision_config.norm_mean).reshape(shape)
    if name.endswith("norm_std"):
        return torch.tensor(config.vision_config.norm_std).reshape(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:  # a bias, or the scale of a norm
        scale = "norm" in name or name == "mlp1.0.weight"
        return 0.02 * noise + (scale and name.endswith("weight"))
    return noise * shape[-1] ** -0.5


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
