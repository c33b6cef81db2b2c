# SPDX-License-Identifier: Apache-2.0
"""Reuse of embeddings: equal tiles are encoded once.

The tower encodes each tile independently and with the same position embeddings,
so tiles with equal pixels have equal embeddings. Tiles are compared by the digests
that the image processor computes from their pixels.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, cached_property
from itertools import chain
from typing import NamedTuple, cast

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.utils.torch_utils import async_tensor_h2d

from ...config.nemotron_vl import EncoderConfig
from ...config.nemotron_vl_options import encoder_data_parallel, encoder_graphs

logger = init_logger("vllm.model_executor.models.nemotron_vl_reuse")

_LOG_SECONDS = 10.0

# A tile was encoded by the tower, or it was equal to another tile of the same
# forward, or its embedding was in the cache.
OUTCOMES = ("encoded", "repeated", "cached")


class ReusePlan(NamedTuple):
    """Where the embeddings of a forward's tiles come from.

    Tiles are numbered in the forward. An encoded tile has a row in the encoder's
    output, a cached one a slot of the cache.

    Attributes:
        encode: Tile of each row, ``(rows)``.
        row_of: Row of each tile that is encoded, or is equal to one.
        slot_of: Slot of each other tile.
        new: Row of each digest that the cache does not have yet.
    """

    encode: list[int]
    row_of: dict[int, int]
    slot_of: dict[int, int]
    new: dict[bytes, int]


class TileReuse:
    """Encodes each distinct tile once, with a cache across forwards.

    Args:
        cache: Memory of the cache, ``(slots, tokens, hidden)``. Zero slots switch
            it off. A new tile replaces the least recently used one.
        weights: The encoder's weights, asked for in the first forward. A change in
            place empties the cache.
        quiet: Do not count: another rank encodes and counts the same tiles.
    """

    def __init__(
        self,
        cache: torch.Tensor,
        weights: Callable[[], Iterable[torch.Tensor]] = tuple,
        *,
        quiet: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._cache = cache
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # oldest first
        self._weights, self._version = weights, 0
        self._quiet = quiet
        self._logged = 0.0

    @property
    def slots(self) -> int:
        """Number of tiles that fit into the cache."""
        return len(self._cache)

    def clear(self) -> None:
        """Empty the cache after a change of the weights."""
        self._slot_of.clear()

    @cached_property
    def _versioned(self) -> list[torch.Tensor]:
        return [weight for weight in self._weights() if not weight.is_inference()]

    def _clear_if_changed(self) -> None:
        # PyTorch counts the changes in place of each tensor.
        version = sum(weight._version for weight in self._versioned)
        if version != self._version:
            self._version = version
            self.clear()

    def __call__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        pixels: torch.Tensor,
        digests: torch.Tensor,
    ) -> torch.Tensor:
        """Embeddings of tiles. The host does not wait for the device.

        Args:
            encode: Encodes pixels ``(tiles, 3, size, size)`` as embeddings
                ``(tiles, tokens, hidden)``, each tile independently.
            pixels: ``(tiles, 3, size, size)``.
            digests: uint8 of shape ``(tiles, bytes)`` on the CPU. Tiles with
                equal digests have equal pixels. A digest of zeros marks a tile
                that is always encoded.

        Returns:
            ``(tiles, tokens, hidden)``.
        """
        if self.slots:
            self._clear_if_changed()
        plan = self.plan(digests)
        self._count(
            encoded=len(plan.encode),
            repeated=len(plan.row_of) - len(plan.encode),
            cached=len(plan.slot_of),
        )
        if len(plan.encode) == len(pixels):
            features = rows = encode(pixels)
        else:
            features, rows = self._gather(encode, pixels, plan)
        self._keep(plan.new, rows)
        return features

    def plan(self, digests: torch.Tensor) -> ReusePlan:
        """Where the embeddings of tiles come from.

        Args:
            digests: As of `__call__`.
        """
        plan = ReusePlan([], {}, {}, {})
        for tile, digest in enumerate(map(bytes, digests.numpy())):
            if digest in self._slot_of:
                self._slot_of.move_to_end(digest)
                plan.slot_of[tile] = self._slot_of[digest]
            elif digest in plan.new:
                plan.row_of[tile] = plan.new[digest]
            else:
                plan.row_of[tile] = len(plan.encode)
                if any(digest):
                    plan.new[digest] = len(plan.encode)
                plan.encode.append(tile)
        return plan

    def _gather(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        pixels: torch.Tensor,
        plan: ReusePlan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all tiles, and those of the encoded ones."""
        features = self._cache.new_empty((len(pixels), *self._cache.shape[1:]))
        rows = features[:0]
        to_encode, encoded, row, cached, slot = self._to_device(
            plan.encode,
            plan.row_of,
            plan.row_of.values(),
            plan.slot_of,
            plan.slot_of.values(),
        )
        if plan.encode:
            rows = encode(pixels.index_select(0, to_encode))
            features.index_copy_(0, encoded, rows.index_select(0, row))
        if plan.slot_of:
            features.index_copy_(0, cached, self._cache.index_select(0, slot))
        return features, rows

    def _keep(self, new: dict[bytes, int], rows: torch.Tensor) -> None:
        """Copy the embeddings of new tiles into the cache."""
        if not self.slots:
            return
        # If there are more new tiles than slots, the last tile of a slot stays.
        row_of = {self._slot_for(digest): row for digest, row in new.items()}
        if row_of:
            slots, kept = self._to_device(row_of, row_of.values())
            self._cache.index_copy_(0, slots, rows.index_select(0, kept))

    def _to_device(self, *indices: Collection[int]) -> Sequence[torch.Tensor]:
        """One copy for all, from pinned memory, for which the host does not wait."""
        together = async_tensor_h2d(
            list(chain(*indices)), device=self._cache.device, dtype=torch.int64
        )
        return together.split([len(part) for part in indices])

    def _slot_for(self, digest: bytes) -> int:
        """A free slot, or that of the least recently used tile."""
        if len(self._slot_of) < self.slots:
            slot = len(self._slot_of)
        else:
            _, slot = self._slot_of.popitem(last=False)
        self._slot_of[digest] = slot
        return slot

    def _count(self, **tiles: int) -> None:
        if self._quiet:
            return
        self.counts.update(tiles)
        for outcome, count in tiles.items():
            if outcome == "cached" and not self.slots:
                continue  # an alert looks for a series of 0
            _metric().labels(outcome).inc(count)
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.info(
                "Tiles: %d received, %d encoded, %d repeated, %d cached.",
                self.counts.total(),
                *(self.counts[outcome] for outcome in OUTCOMES),
            )


def make_tile_reuse(
    config: VllmConfig,
    shape: tuple[int, int],
    weights: Callable[[], Iterable[torch.Tensor]],
) -> TileReuse:
    """Allocate the cache now, before vLLM measures the memory that is left.

    Args:
        config: Has the size of the cache.
        shape: ``(tokens, hidden)`` of a tile's embeddings.
        weights: As of `TileReuse`.
    """
    megabytes = EncoderConfig.from_vllm_config(config).tile_cache_mb
    # The manager of graphs has shared the tiles among the ranks already.
    own_tiles = encoder_graphs(config) and encoder_data_parallel(config)
    for option, given, reason in (
        (
            "encoder graphs and --mm-encoder-tp-mode data",
            own_tiles,
            "each rank would decide otherwise than the rest",
        ),
        (
            "--weight-transfer-config",
            config.weight_transfer_config is not None,
            "vLLM may replace weights without a sign",
        ),
    ):
        if megabytes and given:
            logger.warning_once(
                "tile_cache_mb has no effect with %s: %s.", option, reason
            )
            megabytes = 0
    dtype = cast(torch.dtype, config.model_config.dtype)
    slots = int(megabytes * 1e6 / (math.prod(shape) * dtype.itemsize))
    if megabytes and not slots:
        logger.warning_once("tile_cache_mb=%d does not hold a tile.", megabytes)
    if not get_pp_group().is_first_rank:
        slots = 0  # only the first stage encodes images
    return TileReuse(
        # Some loaders build the model on the meta device.
        torch.empty((slots, *shape), dtype=dtype, device=config.device_config.device),
        weights,
        quiet=get_tensor_model_parallel_rank() > 0 and not own_tiles,
    )


@cache
def _metric():
    """The Prometheus counter; vLLM exports it if it collects from all processes."""
    from prometheus_client import Counter

    return Counter(
        "vllm:mm_tiles",
        "Tiles of images by what happened to them in the vision encoder.",
        ["outcome"],
    )
