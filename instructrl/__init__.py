"""InstructRL: instruction following from human feedback, on kernels whose reference is plain PyTorch.

    from instructrl import Encoder, Limits, Policy, PPOConfig, PPOTrainer, load_tokenizer

The names that are used most are here; each is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructrl.data.chat import ChatTemplate as ChatTemplate
    from instructrl.data.encoding import Encoder as Encoder
    from instructrl.data.readers import read_comparisons as read_comparisons
    from instructrl.data.readers import read_demonstrations as read_demonstrations
    from instructrl.data.readers import read_prompts as read_prompts
    from instructrl.data.settings import Limits as Limits
    from instructrl.data.tokenizers import load_tokenizer as load_tokenizer
    from instructrl.models.policy import Policy as Policy
    from instructrl.models.scoring import RewardModel as RewardModel
    from instructrl.models.scoring import ValueFunction as ValueFunction
    from instructrl.rollout.generate import Sampling as Sampling
    from instructrl.rollout.generate import sample_texts as sample_texts
    from instructrl.rollout.scoring import score_texts as score_texts
    from instructrl.rollout.settings import Truncation as Truncation
    from instructrl.tracking.callbacks import Callback as Callback
    from instructrl.tracking.callbacks import CheckpointDone as CheckpointDone
    from instructrl.tracking.callbacks import PhaseDone as PhaseDone
    from instructrl.tracking.callbacks import StepDone as StepDone
    from instructrl.tracking.tracker import open_tracker as open_tracker
    from instructrl.trainers.ppo import PPOTrainer as PPOTrainer
    from instructrl.trainers.reward_model import RewardModelTrainer as RewardModelTrainer
    from instructrl.trainers.settings import AdamConfig as AdamConfig
    from instructrl.trainers.settings import PPOConfig as PPOConfig
    from instructrl.trainers.settings import RewardModelConfig as RewardModelConfig
    from instructrl.trainers.settings import SFTConfig as SFTConfig
    from instructrl.trainers.sft import SFTTrainer as SFTTrainer
    from instructrl.types import Comparison as Comparison
    from instructrl.types import Conversation as Conversation
    from instructrl.types import Demonstration as Demonstration
    from instructrl.types import Message as Message

__version__ = "0.1.0"

_MODULES = {
    "data.chat": ("ChatTemplate",),
    "data.encoding": ("Encoder",),
    "data.readers": ("read_comparisons", "read_demonstrations", "read_prompts"),
    "data.settings": ("Limits",),
    "data.tokenizers": ("load_tokenizer",),
    "models.policy": ("Policy",),
    "models.scoring": ("RewardModel", "ValueFunction"),
    "rollout.generate": ("Sampling", "sample_texts"),
    "rollout.scoring": ("score_texts",),
    "rollout.settings": ("Truncation",),
    "tracking.callbacks": ("Callback", "CheckpointDone", "PhaseDone", "StepDone"),
    "tracking.tracker": ("open_tracker",),
    "trainers.ppo": ("PPOTrainer",),
    "trainers.reward_model": ("RewardModelTrainer",),
    "trainers.settings": ("AdamConfig", "PPOConfig", "RewardModelConfig", "SFTConfig"),
    "trainers.sft": ("SFTTrainer",),
    "types": ("Comparison", "Conversation", "Demonstration", "Message"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'instructrl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"instructrl.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
