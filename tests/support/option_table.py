"""The options of vLLM that change how images are encoded, and which go together.

`rows` chooses combinations in which each pair of options that work together occurs.
The tests run an engine for each, and check that all other pairs are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from .clips import VIDEO

V2 = "Model Runner V2"
LORA = dict(enable_lora=True, max_lora_rank=8, max_loras=2)
# vLLM compiles nothing, and yet captures the encoder. Its CPU worker takes both from
# `support.gpu_like`.
GRAPHS = dict(
    enforce_eager=False,
    compilation_config={
        "mode": 0,
        "cudagraph_mode": "NONE",
        "cudagraph_mm_encoder": True,
    },
)


@dataclass(frozen=True)
class Option:
    """An option.

    Args:
        shown: How a user sets it.
        arguments: Those of ``LLM``, where they are constant.
        needs: An option without which it has no effect.
    """

    shown: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None


TENSOR, PIPELINE = "tensor parallel", "pipeline parallel"
DATA, GRAPH = "encoder data parallel", "encoder graphs"
TOWER_LORA, LANGUAGE_LORA = "adapters on the encoder", "adapters on the language model"
TILES, EMBEDDINGS = "tile cache", "embeddings in requests"
READER, PRODUCER = "EC reader", "EC encoder"
VIDEOS, FLOATS, QUANTISED = "videos", "float pixels", "quantised tower"

OPTIONS = {
    TENSOR: Option("`--tensor-parallel-size 2`", dict(tensor_parallel_size=2)),
    PIPELINE: Option("`--pipeline-parallel-size 2`", dict(pipeline_parallel_size=2)),
    DATA: Option(
        "`--mm-encoder-tp-mode data`", dict(mm_encoder_tp_mode="data"), needs=TENSOR
    ),
    GRAPH: Option("`cudagraph_mm_encoder` of `--compilation-config`", GRAPHS),
    TOWER_LORA: Option(
        "`--enable-tower-connector-lora`",
        {**LORA, "enable_tower_connector_lora": True},
    ),
    LANGUAGE_LORA: Option("`--enable-lora`", LORA),
    TILES: Option(
        "`tile_cache_mb`", {"additional_config": {"nemotron_vl": {"tile_cache_mb": 1}}}
    ),
    EMBEDDINGS: Option("`--enable-mm-embeds`", dict(enable_mm_embeds=True)),
    READER: Option("`--ec-transfer-config`, `ec_consumer`"),
    PRODUCER: Option("`--ec-transfer-config`, `ec_producer`"),
    VIDEOS: Option("`--hf-overrides` for videos", dict(hf_overrides=VIDEO)),
    FLOATS: Option("`--no-mm-device-do-normalize`", dict(mm_device_do_normalize=False)),
    QUANTISED: Option("a checkpoint with INT8 layers in the tower"),
    V2: Option("vLLM's default on GPUs"),
}

Pair = frozenset[str]


def pair(one: str, other: str) -> Pair:
    return frozenset((one, other))


# Refused at start, with a sentence that matches.
REFUSED: dict[Pair, str] = {
    pair(TOWER_LORA, other): f"--enable-tower-connector-lora does not work with {said}"
    for other, said in {
        DATA: "--mm-encoder-tp-mode data",
        GRAPH: "--compilation-config.cudagraph_mm_encoder",
        EMBEDDINGS: "--enable-mm-embeds",
        VIDEOS: "videos",
    }.items()
}

# Pairs that mean nothing.
MEANINGLESS: dict[Pair, str] = {
    pair(READER, PRODUCER): "an engine has one role",
    pair(LANGUAGE_LORA, PRODUCER): "an encoder has no language model",
    pair(PIPELINE, PRODUCER): "an encoder has no layers to share out",
}

# On CPUs, vLLM's Model Runner V1 has no pipelines with adapters.
ONLY_V2: set[Pair] = {pair(PIPELINE, TOWER_LORA), pair(PIPELINE, LANGUAGE_LORA)}


def works(options: frozenset[str]) -> bool:
    """Whether all these options can be one engine's."""
    pairs = {frozenset(two) for two in combinations(options, 2)}
    if pairs & (REFUSED.keys() | MEANINGLESS.keys()):
        return False
    if any((n := OPTIONS[option].needs) and n not in options for option in options):
        return False
    return V2 in options or not pairs & ONLY_V2


def closed(options: frozenset[str]) -> frozenset[str]:
    """With the options that these need."""
    needed = {OPTIONS[option].needs for option in options} - {None}
    if any(frozenset(two) in ONLY_V2 for two in combinations(options, 2)):
        needed.add(V2)
    return options | needed  # type: ignore[arg-type]


def pairs(v2: bool) -> set[Pair]:
    """All pairs that must give the reference's answers on a model runner."""
    found = {frozenset(two) for two in combinations(OPTIONS, 2)}
    return {
        two for two in found if works(closed(two)) and (v2 or V2 not in closed(two))
    }


def rows(v2: bool, most: int = 9) -> list[frozenset[str]]:
    """Combinations of options that contain each pair, chosen greedily.

    Args:
        v2: Whether they are for Model Runner V2.
        most: Options of a combination.
    """
    left, chosen = pairs(v2), []
    base = frozenset([V2] if v2 else [])
    while left:
        grown = [
            _grown(closed(two | base), left, most, v2)
            for two in sorted(left, key=sorted)
        ]
        best = max(grown, key=lambda row: len(_inside(row) & left))
        chosen.append(best)
        left -= _inside(best)
    return chosen


def _inside(row: frozenset[str]) -> set[Pair]:
    return {frozenset(two) for two in combinations(row, 2)}


def _grown(row: frozenset[str], left: set[Pair], most: int, v2: bool) -> frozenset[str]:
    while True:
        gains = {
            larger: len((_inside(larger) - _inside(row)) & left)
            for option in OPTIONS.keys() - row
            if works(larger := closed(row | {option}))
            and (V2 in larger) == v2
            and len(larger) <= most
        }
        if not gains or not max(gains.values()):
            return row
        row = max(gains, key=lambda larger: (gains[larger], sorted(larger)))
