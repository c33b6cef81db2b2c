# SPDX-License-Identifier: Apache-2.0
"""Recognises files that were decoded before.

Clients send an image again with each turn of a conversation. vLLM's cache of processed
images then has its tiles, so nobody asks for its pixels.
"""

from threading import Lock
from typing import Any

from blake3 import blake3
from cachetools import LRUCache

from .nemotron_vl_secret import launch_secret


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
