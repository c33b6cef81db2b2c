"""What tests of documents share."""

import fsspec
import pytest

from support.fake_server import fake_server


@pytest.fixture
def memory():
    """An empty file system that is not local."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def server():
    """A server without a model."""
    with fake_server() as server:
        yield server
