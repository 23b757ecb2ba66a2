"""Trackers as the tests have them: stand-ins everywhere, the real ones where they are installed."""

import importlib.util

import pytest
import stand_ins
from lives import NAMES


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> str:
    """Where what is found of a network is kept: the first that meets it examines it."""
    return str(tmp_path_factory.mktemp("networks"))


@pytest.fixture(params=[f"{kind} {name}" for kind in ("stand-in for", "real") for name in NAMES])
def tracker(request, tmp_path, monkeypatch, networks) -> tuple[str, bool]:
    """Its name, and whether it is the real one. The working folder is the test's own, as are the tracker's folders."""
    what, _, name = request.param.rpartition(" ")
    if what == "real" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make trackers-test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", networks)
    for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home" / variable))
    if what != "real":
        stand_ins.install(monkeypatch)  # for the readers
    return name, what == "real"
