# SPDX-License-Identifier: Apache-2.0
"""Images that are sent again.

Clients send an image again with each turn of a conversation. vLLM's cache of processed
images then has its tiles, so nobody asks for its pixels: a file that was decoded before
is decoded again only if somebody does.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any

from blake3 import blake3
from cachetools import LRUCache
from PIL import Image

from .nemotron_vl_secret import launch_secret


class LazyImage(Image.Image):
    """An RGB image of known size.

    Args:
        size: Width and height in pixels.
        decode: Returns the image.
    """

    def __init__(
        self, size: tuple[int, int], decode: Callable[[], Image.Image]
    ) -> None:
        super().__init__()
        self._mode, self._size, self._decode = "RGB", size, decode

    def load(self) -> Any:
        """As of a file that Pillow has opened: its other methods call this first."""
        if self._im is None:
            decoded = self._decode()
            decoded.load()
            self.im = decoded.im
        return super().load()


class Seen:
    """What is known of the files that were decoded last; for several threads.

    Args:
        most: Number of files; 0 remembers none.
    """

    def __init__(self, most: int = 0) -> None:
        self._known: LRUCache[bytes, Any] = LRUCache(most)
        self._lock = Lock()

    def key(self, data: bytes, settings: Any) -> bytes:
        """Digest of a file and of the settings with which it is read.

        It has a secret key, so no client can make two files of one digest.
        """
        if not self._known.maxsize:
            return b""
        digest = blake3(data, key=launch_secret("files that were seen"))
        return digest.update(repr(settings).encode()).digest()

    def get(self, key: bytes) -> Any:
        """What was remembered, or `None`."""
        with self._lock:
            return self._known.get(key)

    def remember(self, key: bytes, known: Any) -> None:
        with self._lock:
            if self._known.maxsize:
                self._known[key] = known
