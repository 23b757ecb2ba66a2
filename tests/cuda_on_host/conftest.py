"""The folder in which libraries for the host are built."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> Path:
    """One for all processes that share the tests."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cuda_on_host"
