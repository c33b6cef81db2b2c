"""Options of an engine, and what two of them do together: the one table.

`generation/test_options.py` starts engines for the `rows`, which have every pair of
options that gives answers. `test_options.py` shows the refusals, and that each pair is
one or the other. ``tools/options_page.py`` writes a section of docs/limits.md from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from support.clips import VIDEO
from support.tiny import TILE_TOKENS


@dataclass(frozen=True)
class Option:
    """How to switch it on: for a reader, and as arguments of ``LLM``."""

    title: str
    given: str
    engine: dict[str, Any] = field(default_factory=dict)


def _role(role: str) -> dict[str, Any]:
    """`engine_options` adds the folder of the store, and trusts names."""
    connector = {"ec_connector": "ECExampleConnector", "ec_role": role}
    return {"ec_transfer_config": connector}


ADAPTERS = dict(enable_lora=True, max_lora_rank=8, max_loras=2)
GRAPHS = {
    "cudagraph_mm_encoder": True,
    # The largest images of the tests fit none of them.
    "encoder_cudagraph_token_budgets": [n * TILE_TOKENS for n in (1, 3, 5, 8)],
    # No graphs and no compilation of the language model.
    "cudagraph_mode": "NONE",
    "mode": 0,
}

OPTIONS = {
    "v1": Option("Model Runner V1", "`VLLM_USE_V2_MODEL_RUNNER=0`"),
    "v2": Option("Model Runner V2", "vLLM's default on GPUs with Triton"),
    "tp": Option(
        "tensor parallel", "`--tensor-parallel-size 2`", dict(tensor_parallel_size=2)
    ),
    "dp": Option(
        "encoder data parallel",
        "`--tensor-parallel-size 2 --mm-encoder-tp-mode data`",
        dict(tensor_parallel_size=2, mm_encoder_tp_mode="data"),
    ),
    "pp": Option(
        "pipeline parallel",
        "`--pipeline-parallel-size 2`",
        dict(pipeline_parallel_size=2),
    ),
    "reader": Option(
        "EC reader",
        "`--ec-transfer-config` with `ec_consumer`; pixels, or a name alone",
        _role("ec_consumer"),
    ),
    "producer": Option(
        "EC producer", "`--ec-transfer-config` with `ec_producer`", _role("ec_producer")
    ),
    "both": Option(
        "EC reader and producer",
        "`--ec-transfer-config` with `ec_both`",
        _role("ec_both"),
    ),
    "tower": Option(
        "adapters on tower and connector",
        "`--enable-lora --enable-tower-connector-lora`; two in a step",
        {**ADAPTERS, "enable_tower_connector_lora": True},
    ),
    "language": Option("adapters on the language model", "`--enable-lora`", ADAPTERS),
    "graphs": Option(
        "encoder graphs",
        "`--compilation-config '{\"cudagraph_mm_encoder\": true}'`",
        dict(enforce_eager=False, compilation_config=GRAPHS),
    ),
    "cache": Option(
        "tile cache",
        '`--additional-config \'{"nemotron_vl": {"tile_cache_mb": 1}}\'`',
        dict(additional_config={"nemotron_vl": {"tile_cache_mb": 1}}),
    ),
    "embeds": Option(
        "image embeddings", "`--enable-mm-embeds`", dict(enable_mm_embeds=True)
    ),
    "video": Option(
        "videos",
        "`--hf-overrides` with the architecture for videos",
        dict(hf_overrides=VIDEO, limit_mm_per_prompt={"image": 3, "video": 1}),
    ),
    "uint8": Option("pixels as uint8", "the default"),
    "float": Option(
        "pixels as float",
        "`--no-mm-device-do-normalize`",
        dict(mm_device_do_normalize=False),
    ),
    "int8": Option("quantised tower", "INT8 by compressed-tensors"),
}

Pair = frozenset[str]


def _pairs(*found: tuple[str, str, str]) -> dict[Pair, str]:
    return {frozenset((one, other)): text for one, other, text in found}


# Values of one setting.
ALTERNATIVES = [
    {"v1", "v2"},
    {"tp", "dp"},
    {"reader", "producer", "both"},
    {"uint8", "float"},
]
_TOWER = "--enable-tower-connector-lora does not work with "
# A part of the sentence with which the start is refused.
REFUSED = _pairs(
    ("tower", "dp", f"{_TOWER}--mm-encoder-tp-mode data"),
    ("tower", "graphs", f"{_TOWER}--compilation-config.cudagraph_mm_encoder"),
    ("tower", "embeds", f"{_TOWER}--enable-mm-embeds"),
    ("tower", "video", f"{_TOWER}videos"),
    ("producer", "pp", "has no language model to divide"),
)
# The tile cache has no effect there, and the log says so. The pairs of the second one
# are tested apart.
CACHE_OFF = [{"cache", "tower"}, {"cache", "dp", "graphs"}]


def alternatives(pair: Iterable[str]) -> bool:
    return any(group.issuperset(pair) for group in ALTERNATIVES)


def pairs() -> list[Pair]:
    return [frozenset(pair) for pair in combinations(OPTIONS, 2)]


def answered() -> list[Pair]:
    """The pairs that must give the reference's answers."""
    return [p for p in pairs() if not alternatives(p) and p not in REFUSED]


def pairs_of(row: Iterable[str]) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(row, 2)}


def four_ranks(row: Iterable[str]) -> bool:
    return "pp" in row and not {"tp", "dp"}.isdisjoint(row)


@cache
def rows() -> list[list[str]]:
    """Few sets of options that have every pair that must give answers.

    From each pair that is left a set grows by the option that adds most such pairs;
    the best set is taken. Four ranks are slow, so sets with them have little else.
    """
    left = dict.fromkeys(answered())  # in the table's order
    found = []
    while left:
        grown = [_grown(pair, left) for pair in left]
        row = max(grown, key=lambda row: sum(pair in left for pair in pairs_of(row)))
        for usual in ("v1", "uint8"):
            if not any(usual in group and group & row for group in ALTERNATIVES):
                row |= {usual}
        found.append([option for option in OPTIONS if option in row])
        for pair in pairs_of(row):
            left.pop(pair, None)
    return found


def _grown(pair: Pair, left: Iterable[Pair]) -> frozenset[str]:
    row = pair
    while True:
        new = {
            option: sum(frozenset((option, other)) in left for other in row)
            for option in OPTIONS
            if option not in row and _together(row, option)
        }
        best = max(new, key=lambda option: new[option], default=None)
        if best is None or not new[best]:
            break
        row |= {best}
    return row


def _together(row: frozenset[str], option: str) -> bool:
    pairs = {frozenset((option, other)) for other in row}
    return not (
        any(alternatives(pair) for pair in pairs)
        or pairs & REFUSED.keys()
        or (four_ranks(row | {option}) and option not in {"v1", "v2", "uint8", "float"})
        or CACHE_OFF[1] <= row | {option}
    )


def engine_options(row: Iterable[str], store: Path | str) -> dict[str, Any]:
    """The arguments of ``LLM`` for some options together.

    Args:
        row: The options.
        store: Folder in which a connector keeps embeddings.
    """
    merged: dict[str, Any] = {}
    for option in row:
        merged |= OPTIONS[option].engine
    if connector := merged.get("ec_transfer_config"):
        extra = {"ec_connector_extra_config": {"shared_storage_path": str(store)}}
        merged["ec_transfer_config"] = connector | extra
        # Their requests name what is stored.
        ours = merged.get("additional_config", {}).get("nemotron_vl", {})
        merged["additional_config"] = {"nemotron_vl": ours | {"trusted_uuids": True}}
    return merged
