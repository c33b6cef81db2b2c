"""What tests of documents share."""

import fsspec
import pytest


@pytest.fixture
def memory():
    """An empty file system that is not local."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
