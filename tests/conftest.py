"""Settings that hold for every test."""

import os

# Model hubs are never asked: what a test loads, it has made.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Tensors here are tiny: a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
