# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is a copy of the embedded one, by its content."""

from pathlib import Path

from ...assets.nemotron_vl import tiny_checkpoint
from .checkpoint_files import read_object

# What quantising and converting change.
_FREE = ("quantization_config", "torch_dtype", "dtype")


def is_embedded(checkpoint: str | Path, exact: bool = False) -> bool:
    """Whether a folder holds the embedded checkpoint or one converted from it.

    The configurations and the tokenizers are compared, not the weights.

    Args:
        checkpoint: Folder.
        exact: Whether a quantised copy, or one of another dtype, is none.
    """
    free = () if exact else _FREE
    copy, own = Path(checkpoint), Path(tiny_checkpoint())
    try:
        return _identity(copy, free) == _identity(own, free)
    except (OSError, ValueError, AttributeError):
        return False


def _identity(folder: Path, free: tuple[str, ...]) -> tuple[dict, dict]:
    config, tokenizer = (
        read_object(folder / name) for name in ("config.json", "tokenizer.json")
    )
    return {k: v for k, v in config.items() if k not in free}, tokenizer


def embedded_digests() -> dict[str, str]:
    """SHA-256 of each file of the embedded checkpoint, as it was published.

    The list has the format of ``sha256sum``; ``tools/publish_tiny.py`` writes it.
    """
    lines = Path(f"{tiny_checkpoint()}.sha256").read_text().splitlines()
    return {name: digest for digest, name in map(str.split, lines)}
