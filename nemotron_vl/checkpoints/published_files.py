# SPDX-License-Identifier: Apache-2.0
"""The published checkpoint's small files, as far as their digests are known.

docs/provenance.md says from where. The hub may have other revisions of them.
"""

import hashlib
from pathlib import Path

from ..regular_files import open_regular

# SHA-256 of files of nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1.
KNOWN_FILES = {
    "config.json": "d249106251318246ac377b0722ad2a733592d54781271e2bcc89ba76626b2edb",
    "preprocessor_config.json": (
        "63ed8d1a7d866d2322cac5c73d8c3fa033a79ada289df02530ca0d16688fde8f"
    ),
    "special_tokens_map.json": (
        "6f38c73729248f6c127296386e3cdde96e254636cc58b4169d3fd32328d9a8ec"
    ),
    "tokenizer.json": (
        "f5725802f93aea2c6126c605128904b2feaad45cdc0b16240fb153481a229948"
    ),
    "tokenizer_config.json": (
        "fce27bafb0f4fd5fcbf3fc9a7152fb659fad40f7371142d2cbdf20a3ad8dae59"
    ),
}


def is_known(file: Path) -> bool:
    """Whether a file is that of its name in `KNOWN_FILES`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file.
    """
    known = KNOWN_FILES.get(file.name)
    return known is not None and sha256(file) == known


def sha256(file: Path) -> str:
    """Digest of a regular file, in hexadecimal digits."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
