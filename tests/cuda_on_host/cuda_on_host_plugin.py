"""Attaches the CUDA kernels, executed on the host, as a backend of its own. For INSTRUCTRL_TEST_PLUGIN."""

import os

import torch

from instructrl.ops import compiled

BACKEND = "cuda_on_host"
PREFIX = "_cuda_on_host_"

torch.ops.load_library(os.environ["INSTRUCTRL_HOST_LIBRARY"])
compiled.attach(BACKEND, prefix=PREFIX, dtypes={"cpu": (torch.float32, torch.bfloat16, torch.float16)}, devices=())
