# SPDX-License-Identifier: Apache-2.0
"""Secrets that the processes of one launch share, and no file and no client knows."""

import hmac
from functools import cache
from multiprocessing import current_process


@cache
def launch_secret(purpose: str) -> bytes:
    """32 bytes that are equal in all processes that one process started.

    A process inherits Python's ``authkey``, which is random, from the one that starts
    it. So the API servers of one command agree, and those of two commands do not.

    Args:
        purpose: What the secret is for; each purpose has its own.
    """
    return hmac.digest(current_process().authkey, purpose.encode(), "sha256")
