"""Settings of the rollout."""

from typing import Literal

EngineName = Literal["builtin", "vllm"]
