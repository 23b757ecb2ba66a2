"""Settings that hold for every test."""

import os

import pytest
import slow_tests

# Model hubs are never asked: what a test loads, it has made.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Tensors here are tiny: a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Mark what `make quick` leaves out."""
    for item in items:
        place = item.nodeid.split("[")[0].removeprefix("tests/")
        if slow_tests.is_slow(place):
            item.add_marker(pytest.mark.slow)
