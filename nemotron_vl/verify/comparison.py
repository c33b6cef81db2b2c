# SPDX-License-Identifier: Apache-2.0
"""An engine's results, compared with the files of the reference."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_digest import NO_REUSE

from .errors import relative_error
from .expected import TOKENS
from .images import prompt
from .stages import Row
from .worker import EncoderComparison

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
    # It holds all tiles that are compared, of 4 MB in float32.
    "additional_config": {"nemotron_vl": {"tile_cache_mb": 512}},
}
_EXACT = {"resize": "exact"}

_numbers = itertools.count()


def compare(
    llm: "LLM",
    dtype: str,
    engine: str,
    images: Mapping[str, Image.Image],
    folder: Path,
    not_run: list[str],
) -> Iterator[Row]:
    """Compare all stages of an engine on all images.

    Args:
        llm: With `OPTIONS`.
        dtype: Its dtype and that of the reference.
        engine: How it runs, for the rows.
        images: Those of `write_expected`, in the same order.
        folder: Its files.
        not_run: Gets what did not run as it should, so that it was not compared.
    """

    def row(stage: str, image: str, error: float, suffix: str = "") -> Row:
        return Row(dtype, engine + suffix, stage, image, error)

    expected: dict[str, dict[str, torch.Tensor]] = {
        name: load_file(folder / f"{number}.safetensors")
        for number, name in enumerate(images)
    }
    processor: Any = MULTIMODAL_REGISTRY.create_processor(llm.model_config)
    for name, image in images.items():
        for recipe in ("exact", "fast"):
            resize = processor.info.get_image_processor(resize=recipe)
            pixels = resize(images=image)["pixel_values_flat"]
            error = _levels(pixels, expected[name]["pixels"])
            yield row(f"pixels, {recipe}", name, error)

    ranks = llm.collective_rpc("compare_nemotron_vl_encoder", args=(str(folder),))
    for rank in ranks:
        for name, errors in zip(images, rank, strict=True):
            for stage, error in errors.items():
                yield row(stage, name, error)

    embeds = {name: e["features"].flatten(0, 1) for name, e in expected.items()}
    for name, (first, _) in _generate(llm, embeds, tokens=1).items():
        error = relative_error(_logits(first), expected[name]["logits"][0])
        yield row("language model", name, error)

    # The second pass takes tiles from the tile cache, the third reuses none.
    fresh = {name: image.copy() for name, image in images.items()}
    for image in fresh.values():
        image.info[NO_REUSE] = True  # type: ignore[index]
    graphs = llm.llm_engine.vllm_config.compilation_config.cudagraph_mm_encoder
    for suffix, items, missed in (
        ("", images, _no_graph if graphs else _nothing),
        (", tiles from the cache", images, _no_cache),
        (", no tile reuse", fresh, _reuse),
    ):
        before = _tile_outcomes(llm)
        outputs = _generate(llm, items, tokens=TOKENS)
        if reason := missed(_tile_outcomes(llm) - before):
            not_run.append(f"{dtype}, {engine}{suffix}: {reason}")
            continue
        for name, (first, answer) in outputs.items():
            wanted = expected[name]
            ids = first.prompt_token_ids or []
            yield row("prompt", name, _differences(ids, wanted["prompt"]), suffix)
            error = relative_error(_logits(first), wanted["logits"][0])
            yield row("first token", name, error, suffix)
            gap = _gap(answer.outputs[0].token_ids, wanted["tokens"], wanted["logits"])
            yield row("answer", name, gap, suffix)


def _tile_outcomes(llm: "LLM") -> Counter[str]:
    """Of the rank that counts: the others encode the same tiles."""
    ranks: list[dict[str, int]] = llm.collective_rpc("nemotron_vl_tile_outcomes")
    return Counter(ranks[0])


# Why a pass did not run as its name says, from the ways that its tiles took.


def _nothing(ways: Counter[str]) -> None:
    return None


def _no_graph(ways: Counter[str]) -> str | None:
    return None if ways["graphs"] else "no image passed a CUDA graph"


def _no_cache(ways: Counter[str]) -> str | None:
    if ways["graphs"]:
        return "images that pass a CUDA graph reuse no tiles"
    if ways["encoded"] or not ways["cached"]:
        return f"only {ways['cached']} of {ways.total()} tiles were in the cache"
    return None


def _reuse(ways: Counter[str]) -> str | None:
    if ways["graphs"]:
        return "images that pass a CUDA graph reuse no tiles"
    reused = ways["repeated"] + ways["cached"]
    return f"{reused} of {ways.total()} tiles were reused" if reused else None


def _generate(
    llm: "LLM", images: Mapping[str, Any], tokens: int
) -> dict[str, tuple["RequestOutput", "RequestOutput"]]:
    """Answers about images or about embeddings. Nothing is taken from earlier ones.

    Returns:
        For each, an output of one token with all its logits, and one of ``tokens``
        without: the logits of a vocabulary of 128,000 take 40 MB a token.
    """
    sampling = [
        SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False),
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
    ]
    requests = [
        {
            "prompt": prompt(),
            "multi_modal_data": {"image": [image]},
            "multi_modal_uuids": {"image": [uuid]},
            "cache_salt": uuid,  # without it, uuids mean nothing
            "mm_processor_kwargs": _EXACT,
        }
        for image in images.values()
        # The two requests share what the encoder computes.
        for uuid in [f"verify-{next(_numbers)}"] * len(sampling)
    ]
    outputs = llm.generate(
        requests,  # type: ignore[arg-type]
        sampling * len(images),
        use_tqdm=False,
    )
    pairs = zip(outputs[::2], outputs[1::2], strict=True)
    return dict(zip(images, pairs, strict=True))


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
