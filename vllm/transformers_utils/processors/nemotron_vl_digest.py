# SPDX-License-Identifier: Apache-2.0
"""Digests of tiles, by which the model recognises equal tiles."""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from blake3 import blake3

from ...multimodal.nemotron_vl_secret import launch_secret
from .nemotron_vl_resampling.threads import IMAGE_THREADS

DIGEST_BYTES = 16

# Key in the ``info`` of an image whose tiles must all be encoded. It is no string,
# because the text chunks of a PNG file become keys, too.
NO_REUSE = ("nemotron_vl", "no_reuse")


def tile_digest(tile: torch.Tensor) -> bytes:
    """128-bit digest of a contiguous uint8 tile, equal in all processes of a launch.

    Its key is secret, so no client can make two tiles with the same digest.
    """
    key = launch_secret("digests of tiles")
    return blake3(tile.numpy().data, key=key).digest(length=DIGEST_BYTES)


def tile_digests(tiles: Iterable[torch.Tensor], reuse: Iterable[bool]) -> torch.Tensor:
    """Digests of the tiles of several images or videos.

    Args:
        tiles: The tiles of each, ``(tiles, 3, size, size)``, uint8.
        reuse: Whether its tiles may be encoded once. Otherwise they get zeros for a
            digest.

    Returns:
        uint8 of shape ``(tiles of all, 16)``.
    """
    all_tiles = [
        tile if may_be_reused else None
        for its_tiles, may_be_reused in zip(tiles, reuse, strict=True)
        for tile in its_tiles
    ]
    digests = np.zeros((len(all_tiles), DIGEST_BYTES), np.uint8)

    def compute(number: int, tile: torch.Tensor) -> None:
        digests[number] = np.frombuffer(tile_digest(tile), np.uint8)

    IMAGE_THREADS.run(
        [
            partial(compute, number, tile)
            for number, tile in enumerate(all_tiles)
            if tile is not None
        ]
    )
    return torch.from_numpy(digests)
