"""The engines that sample the responses of a rollout, and what they have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.settings import EngineName, VLLMConfig
from instructrl.rollout.vllm_engine import VLLMEngine
from instructrl.rollout.vllm_server import VLLMServer
from instructrl.types import Rollout


class RolloutEngine(Protocol):
    """One response to each prompt, in the order of the prompts, from the policy's weights as they are at the call.

    Row i is episode `first_episode + i`. Responses end with one of `encoder.ends`, with another of the policy's `ends`,
    or at the limit of `sampling`, which also has the only settings that shape the distribution.
    """

    def __call__(
        self, policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
    ) -> Rollout: ...


def open_engine(
    name: EngineName, model: str | Path, limits: Limits, *, precision: str = "float32", vllm: VLLMConfig = VLLMConfig()
) -> RolloutEngine:
    """The engine of this name.

    model: a transformers folder or name, of the architecture and size of the policies to come. limits: of their
    prompts and responses. precision: of an engine with a model of its own; "builtin" runs the policy as it is given.
    vllm: for the engine of this name. Raises as `VLLMEngine` and `VLLMServer`.
    """
    if name == "builtin":
        return sample_rollout
    if vllm.server is not None and vllm.weights_folder is not None:
        return VLLMServer(vllm.server, limits, vllm.weights_folder, precision=precision)
    return VLLMEngine(model, limits, vllm, precision=precision)
