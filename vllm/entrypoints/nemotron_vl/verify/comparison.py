# SPDX-License-Identifier: Apache-2.0
"""An engine's results, compared with the files of the reference."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.multimodal import MULTIMODAL_REGISTRY

from ....transformers_utils.processors.nemotron_vl_digest import NO_REUSE
from .expected import TOKENS
from .pictures import prompt
from .stages import Row
from .worker import EncoderComparison, relative_error

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import RequestOutput

# Engine options that a comparison needs.
OPTIONS: dict[str, Any] = {
    "worker_extension_cls": f"{EncoderComparison.__module__}.EncoderComparison",
    "enable_mm_embeds": True,  # the language model gets the reference's
    "max_logprobs": -1,
    "logprobs_mode": "raw_logits",
    # What is compared must be computed, not remembered.
    "enable_prefix_caching": False,
    "mm_processor_cache_gb": 0,
    "additional_config": {"nemotron_vl": {"tile_cache_mb": 64}},
}
_EXACT = {"resize": "exact"}

_numbers = itertools.count()


def compare(
    llm: "LLM",
    dtype: str,
    engine: str,
    pictures: Mapping[str, Image.Image],
    folder: Path,
) -> Iterator[Row]:
    """Compare all stages of an engine on all images.

    Args:
        llm: With `OPTIONS`.
        dtype: Of it and of the reference.
        engine: How it runs, for the rows.
        pictures: Those of `write_expected`, in the same order.
        folder: Its files.
    """

    def row(stage: str, picture: str, error: float, suffix: str = "") -> Row:
        return Row(dtype, engine + suffix, stage, picture, error)

    expected: dict[str, dict[str, torch.Tensor]] = {
        name: load_file(folder / f"{number}.safetensors")
        for number, name in enumerate(pictures)
    }
    processor: Any = MULTIMODAL_REGISTRY.create_processor(llm.model_config)
    for name, picture in pictures.items():
        for recipe in ("exact", "fast"):
            resize = processor.info.get_image_processor(resize=recipe)
            pixels = resize(images=picture)["pixel_values_flat"]
            error = _levels(pixels, expected[name]["pixels"])
            yield row(f"pixels, {recipe}", name, error)

    ranks = llm.collective_rpc("compare_nemotron_vl_encoder", args=(str(folder),))
    for rank in ranks:
        for name, errors in zip(pictures, rank, strict=True):
            for stage, error in errors.items():
                yield row(stage, name, error)

    embeds = {name: e["features"].flatten(0, 1) for name, e in expected.items()}
    for name, output in _generate(llm, embeds, tokens=1).items():
        error = relative_error(_logits(output), expected[name]["logits"][0])
        yield row("language model", name, error)

    # The second pass takes tiles from the tile cache, the third reuses none.
    fresh = {name: picture.copy() for name, picture in pictures.items()}
    for picture in fresh.values():
        picture.info[NO_REUSE] = True  # type: ignore[index]
    for suffix, images in (
        ("", pictures),
        (", tiles from the cache", pictures),
        (", no tile reuse", fresh),
    ):
        for name, output in _generate(llm, images, tokens=TOKENS).items():
            wanted = expected[name]
            ids = output.prompt_token_ids or []
            yield row("prompt", name, _differences(ids, wanted["prompt"]), suffix)
            error = relative_error(_logits(output), wanted["logits"][0])
            yield row("first token", name, error, suffix)
            gap = _gap(output.outputs[0].token_ids, wanted["tokens"], wanted["logits"])
            yield row("answer", name, gap, suffix)


def _generate(
    llm: "LLM", images: Mapping[str, Any], tokens: int
) -> dict[str, "RequestOutput"]:
    """Answers about images or about embeddings. Nothing is taken from earlier ones."""
    sampling = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=-1
    )
    requests = [
        {
            "prompt": prompt(),
            "multi_modal_data": {"image": [image]},
            "multi_modal_uuids": {"image": [f"verify-{next(_numbers)}"]},
            "mm_processor_kwargs": _EXACT,
        }
        for image in images.values()
    ]
    outputs = llm.generate(requests, sampling, use_tqdm=False)  # type: ignore[arg-type]
    return dict(zip(images, outputs, strict=True))


def _logits(output: "RequestOutput") -> torch.Tensor:
    """Of the first token, over the vocabulary."""
    (found, *_) = output.outputs[0].logprobs or [{}]
    assert found is not None  # it is for the first token of a prompt only
    logits = torch.full((max(found, default=-1) + 1,), float("nan"))
    for token, entry in found.items():
        logits[token] = entry.logprob
    return logits


def _levels(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return 255.0
    return (found.short() - expected.short()).abs().max().item()


def _differences(found: list[int], expected: torch.Tensor) -> int:
    pairs = itertools.zip_longest(found, expected.tolist())
    return sum(one != other for one, other in pairs)


def _gap(found, expected: torch.Tensor, logits: torch.Tensor) -> float:
    """How much less likely the reference finds the first other token, in logits."""
    for place, (token, own) in enumerate(zip(found, expected.tolist(), strict=True)):
        if token != own:
            return (logits[place, own] - logits[place, token]).item()
    return 0.0
