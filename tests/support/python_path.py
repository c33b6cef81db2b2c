"""Folders that a process of its own imports from."""

import os
from collections.abc import Iterable
from pathlib import Path


def with_folders(*folders: Path, **variables: str) -> dict[str, str]:
    """This process's environment with folders in front of ``PYTHONPATH``.

    Args:
        folders: Absolute.
        variables: Further environment variables.
    """
    inherited: Iterable[str] = filter(None, [os.environ.get("PYTHONPATH")])
    path = os.pathsep.join([*map(str, folders), *inherited])
    return {**os.environ, "PYTHONPATH": path, **variables}
