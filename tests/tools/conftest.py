"""The reference of a random checkpoint, and fonts to train with."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference(checkpoint):
    from nemotron_vl.verify.reference import Reference

    return Reference.load(checkpoint)


@pytest.fixture(scope="session")
def fonts(tmp_path_factory) -> Path:
    """A folder as tools/fonts.sh writes it, with the fonts of matplotlib."""
    import matplotlib

    folder = tmp_path_factory.mktemp("fonts")
    source = Path(matplotlib.get_data_path(), "fonts/ttf")
    shutil.copytree(source, folder / "training")
    return folder
