"""Settings of the commands that are single steps, and of those that look at what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructrl.data.settings import DATE, Limits, LongPrompts, Turns
from instructrl.models.settings import AdapterConfig
from instructrl.rollout.settings import EngineName, Truncation
from instructrl.runs.named import NamedRun
from instructrl.settings import require_not_negative, require_positive
from instructrl.trainers.settings import CheckpointConfig, PPOConfig, RewardModelConfig, SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTCommand:
    """Fine-tune a language model on demonstrations; every epoch is kept as a transformers folder."""

    # the pretrained model: a transformers folder or name
    model: str
    # demonstrations: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for models and metrics
    out: str
    # demonstrations for the validation loss; without them a tenth of the prompts in data is held out, by "none" nothing
    validation: str | None = None
    # plain text, where sft.pretraining_fraction asks for it
    corpus: str | None = None
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # length of a block of plain text
    block_tokens: int = 2048
    # rows whose prompt is longer than the limit: left out and counted, or refused
    long_prompts: LongPrompts = "drop"
    # renders prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is saved
    # with the model
    chat_template: str = "auto"
    # the day that it is for a template that asks
    chat_date: str = DATE
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # what trains: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # of the training
    sft: SFTConfig = SFTConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelCommand:
    """Train a reward model on all pairs of K-wise comparisons, then set its bias on demonstrations."""

    # what it starts from, usually the last SFT epoch: a transformers folder or name
    model: str
    # comparisons: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for the model and metrics
    out: str
    # demonstrations, which are to score 0 on average; without them the bias stays 0
    demonstrations: str | None = None
    # comparisons to measure the accuracy on; without them a tenth of the prompts in data is held out, by "none" nothing
    validation: str | None = None
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # rows whose prompt is longer than the limit: left out and counted, or refused
    long_prompts: LongPrompts = "drop"
    # renders prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is saved
    # with the model
    chat_template: str = "auto"
    # the day that it is for a template that asks
    chat_date: str = DATE
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # what trains: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # of the training
    reward_model: RewardModelConfig = RewardModelConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOCommand:
    """PPO against a reward model; PPO-ptx where ppo.ptx_coef is positive."""

    # the policy it starts from, also the reference of the KL: a transformers folder or name
    model: str
    # a folder that `instructrl rm` wrote, with the same tokenizer
    reward_model: str
    # prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for the model and metrics
    out: str
    # plain text for the pretraining mix
    corpus: str | None = None
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # samples the responses; vllm has random numbers of its own: other tokens, and not the same ones in every run
    engine: EngineName = "builtin"
    # length of a block of plain text
    block_tokens: int = 2048
    # rows whose prompt is longer than the limit: left out and counted, or refused
    long_prompts: LongPrompts = "drop"
    # renders prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is saved
    # with the model
    chat_template: str = "auto"
    # the day that it is for a template that asks
    chat_date: str = DATE
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # what trains: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # of the training
    ppo: PPOConfig = PPOConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCommand:
    """Win rates against a baseline, judged by a reward model."""

    # the baseline: a transformers folder or name
    baseline: str
    # models to compare with it: folders or names with the same tokenizer
    models: tuple[str, ...]
    # the judge: a folder that `instructrl rm` wrote, better not the one that a model was trained against
    reward_model: str
    # prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for results.json, which holds the responses too; `instructrl report` makes a page of it
    out: str
    # start over where `out` holds an earlier run
    fresh: bool = False
    # of everything sampled
    seed: int = 0
    # of the sampled responses; 0 takes the likeliest token
    temperature: float = 1.0
    # which tokens are sampled from, and where a response stops
    sampling: Truncation = Truncation()
    # rows whose prompt is longer than the limit: left out and counted, or refused
    long_prompts: LongPrompts = "drop"
    # renders prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file
    chat_template: str = "auto"
    # the day that it is for a template that asks
    chat_date: str = DATE
    # of prompts and responses, in tokens
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        names = [name.rstrip("/") for name in (self.baseline, *self.models)]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"models: found {list(self.models)}, accepted is at least one model, each different")
        require_not_negative(self, "temperature")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCommand:
    """Sample responses of a model. Without --prompts and --data, each line of the standard input is a prompt."""

    # a policy: a transformers folder or name
    model: str
    # texts to answer
    prompts: tuple[str, ...] = ()
    # a file of prompts in place of them: .jsonl, .jsonl.gz or .parquet, or hub:NAME
    data: str | None = None
    # auto: with the tokenizer's chat template, a text is one message of a user; none: a text is the prompt as it is; or
    # a Jinja file in place of the tokenizer's
    chat_template: str = "auto"
    # the day that it is for a template that asks
    chat_date: str = DATE
    # responses to each prompt
    samples: int = 1
    # of the sampling
    seed: int = 0
    # divides the logits; 0 takes the likeliest token
    temperature: float = 1.0
    # which tokens are sampled from, and where a response stops
    sampling: Truncation = Truncation()
    # where a response is cut; None is 256, or half of the model's positions where they are fewer than twice as many
    max_response_tokens: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "samples", "max_response_tokens")
        require_not_negative(self, "temperature")
        if self.prompts and self.data is not None:
            raise ValueError(f"data: found {self.data} beside prompts, accepted is one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCommand:
    """Make whole weights of an adapter and its base."""

    # the folder of an adapter, of a policy or of a reward model
    model: str
    # a new folder, for a transformers folder
    out: str
    # of the weights; None is that of the base that the adapter was trained on
    dtype: Literal["float32", "bfloat16"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """A named run, with its own configuration as it is to be carried out."""

    name: str
    named: NamedRun
    config: Any
    folder: Path
    dry_run: bool
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCommand:
    """A file of data of which every row is to be read. model: whose tokenizer shows the first row as it reads it, with
    the chat template and the day as the steps take them."""

    kind: Literal["demonstrations", "comparisons", "prompts", "corpus"]
    file: str
    model: str | None = None
    chat_template: str = "auto"
    chat_date: str = DATE
    turns: Turns = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCommand:
    """The page of a run or of a single step, and its main plot as a picture where a file is named for it."""

    folder: Path
    figure: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorCommand:
    """What this machine can run. host: the adapter whose host is looked at instead, "" for none."""

    host: str = ""
