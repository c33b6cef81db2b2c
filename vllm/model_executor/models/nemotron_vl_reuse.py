# SPDX-License-Identifier: Apache-2.0
"""Reuse of embeddings: equal tiles are encoded once.

The tower encodes each tile independently and with the same position embeddings,
so tiles with equal pixels have equal embeddings. Tiles are compared by the digests
that the image processor computes from their pixels.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, cached_property
from itertools import chain

import torch
from vllm.logger import init_logger
from vllm.utils.torch_utils import async_tensor_h2d

logger = init_logger("vllm.model_executor.models.nemotron_vl_reuse")

_LOG_SECONDS = 10.0

# A tile was encoded by the tower, or it was equal to another tile of the same
# forward, or its embedding was in the cache.
OUTCOMES = ("encoded", "repeated", "cached")


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
        self._slots: OrderedDict[bytes | int, int] = OrderedDict()  # oldest first
        self._weights, self._version = weights, 0
        self._quiet = quiet
        self._logged = 0.0

    @property
    def slots(self) -> int:
        """Number of tiles that fit into the cache."""
        return len(self._cache)

    def clear(self) -> None:
        """Empty the cache after a change of the weights."""
        self._slots.clear()

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
        new: dict[bytes | int, int] = {}  # index among the tiles to encode
        fresh: list[int] = []
        encoded, places, cached, slots = [], [], [], []
        for tile, digest in enumerate(map(bytes, digests.numpy())):
            key = digest if any(digest) else tile
            if key in self._slots:
                self._slots.move_to_end(key)
                cached.append(tile)
                slots.append(self._slots[key])
                continue
            if key not in new:
                new[key] = len(fresh)
                fresh.append(tile)
            encoded.append(tile)
            places.append(new[key])
        self._count(
            encoded=len(fresh),
            repeated=len(encoded) - len(fresh),
            cached=len(cached),
        )
        if len(fresh) == len(pixels):
            features = embeddings = encode(pixels)
        else:
            features = self._cache.new_empty((len(pixels), *self._cache.shape[1:]))
            rows = self._to_device(fresh, encoded, places, cached, slots)
            if fresh:
                embeddings = encode(pixels.index_select(0, rows[0]))
                features.index_copy_(0, rows[1], embeddings.index_select(0, rows[2]))
            if cached:
                features.index_copy_(0, rows[3], self._cache.index_select(0, rows[4]))
        # If there are more new tiles than slots, the last tile of a slot stays.
        kept: dict[int, int] = {}
        for key, place in new.items():
            if isinstance(key, bytes) and self.slots:
                kept[self._slot_for(key)] = place
        if kept:
            rows = self._to_device(kept, kept.values())
            self._cache.index_copy_(0, rows[0], embeddings.index_select(0, rows[1]))
        return features

    def _to_device(self, *indices: Collection[int]) -> Sequence[torch.Tensor]:
        """One copy for all, from pinned memory, for which the host does not wait."""
        together = async_tensor_h2d(
            list(chain(*indices)), device=self._cache.device, dtype=torch.int64
        )
        return together.split([len(part) for part in indices])

    def _slot_for(self, key: bytes) -> int:
        """A free slot, or that of the least recently used tile."""
        if len(self._slots) < self.slots:
            slot = len(self._slots)
        else:
            _, slot = self._slots.popitem(last=False)
        self._slots[key] = slot
        return slot

    def _count(self, **tiles: int) -> None:
        if self._quiet:
            return
        self.counts.update(tiles)
        for outcome, count in tiles.items():
            _metric().labels(outcome).inc(count)
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.info(
                "Tiles: %d received, %d encoded, %d repeated, %d cached.",
                self.counts.total(),
                *(self.counts[outcome] for outcome in OUTCOMES),
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
