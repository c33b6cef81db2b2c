# SPDX-License-Identifier: Apache-2.0
"""The embedded checkpoint, and whether another is a copy of it."""

from pathlib import Path
from typing import NamedTuple

from .files import read_object


class Trained(NamedTuple):
    """What a checkpoint was trained to read, and how well it does."""

    characters: str
    longest: int  # characters of a line
    lines: int
    least_right: int  # of the 20 questions of ``nemotron-vl demo``

    def __str__(self) -> str:
        digits = "digits and " + " ".join(c for c in self.characters if not c.isdigit())
        return f"1 to {self.lines} lines of 1 to {self.longest} characters, {digits}"


# Of the embedded checkpoint.
TINY = Trained("0123456789.,:-/$%", longest=10, lines=3, least_right=17)


def tiny_checkpoint() -> str:
    """Folder of the embedded checkpoint, a tiny Nemotron VL that reads text.

    It was trained on drawn lines as in ``TINY``, and on these questions: "Read the
    text.", "Read line 2.", "Read both." (two images), "How many characters are
    there?" and "What is the first character?".
    """
    return str(Path(__file__).with_name("tiny"))


def tiny_finder() -> str:
    """Folder of the embedded checkpoint that embeds pages and questions.

    A page that shows a number, such as 4711-08, is found by the question "4711-08".
    The characters are those of ``TINY``.
    """
    return str(Path(__file__).with_name("tiny_embed"))


def tiny_ranker() -> str:
    """Folder of the embedded checkpoint that ranks pages for such a question."""
    return str(Path(__file__).with_name("tiny_rerank"))


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
