"""Settings of the commands that are single steps, and of those that look at what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructrl.data.settings import DATE, Limits, LongPrompts, Turns
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.models.settings import AdapterConfig, Precision
from instructrl.rollout.settings import EngineName, Truncation, VLLMConfig
from instructrl.runs.named import NamedRun
from instructrl.runs.studies.points import Study, StudyConfig
from instructrl.settings import DeviceName, require_not_negative, require_positive
from instructrl.tracking.settings import TrackerName
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
    # demonstrations for the validation loss; by default a tenth of the prompts in data is held out, with "none" nothing
    validation: str | None = None
    # plain text, needed if sft.pretraining_fraction is positive
    corpus: str | None = None
    # start over if `out` holds an earlier run; by default the same command goes on where it was
    fresh: bool = False
    # seed of all random numbers
    seed: int = 0
    # length of a block of plain text
    block_tokens: int = 2048
    # rows whose prompt is longer than the limit: leave them out and count them, or refuse them
    long_prompts: LongPrompts = "drop"
    # template for prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is
    # saved with the model
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # length limits of prompts and responses, in tokens
    limits: Limits = Limits()
    # what is trained: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # the training
    sft: SFTConfig = SFTConfig()
    # also shows curves, samples, settings and times there (docs/tracking.md)
    track: TrackerName = "none"
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelCommand:
    """Train a reward model on all pairs of K-wise comparisons, then set its bias on demonstrations."""

    # the model to start from, usually the last SFT epoch: a transformers folder or name
    model: str
    # comparisons: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for the model and metrics
    out: str
    # demonstrations, whose mean score the bias makes 0; without them the bias stays 0
    demonstrations: str | None = None
    # comparisons to measure the accuracy on; by default a tenth of the prompts in data is held out, with "none" nothing
    validation: str | None = None
    # start over if `out` holds an earlier run; by default the same command goes on where it was
    fresh: bool = False
    # seed of all random numbers
    seed: int = 0
    # rows whose prompt is longer than the limit: leave them out and count them, or refuse them
    long_prompts: LongPrompts = "drop"
    # template for prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is
    # saved with the model
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # length limits of prompts and responses, in tokens
    limits: Limits = Limits()
    # what is trained: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # the training
    reward_model: RewardModelConfig = RewardModelConfig()
    # also shows curves, samples, settings and times there (docs/tracking.md)
    track: TrackerName = "none"
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOCommand:
    """PPO against a reward model; PPO-ptx where ppo.ptx_coef is positive."""

    # the policy to start from, which is also the reference of the KL: a transformers folder or name
    model: str
    # a folder that `instructrl rm` wrote, with the same tokenizer
    reward_model: str
    # prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for the model and metrics
    out: str
    # plain text for the pretraining mix
    corpus: str | None = None
    # start over if `out` holds an earlier run; by default the same command goes on where it was
    fresh: bool = False
    # seed of all random numbers
    seed: int = 0
    # what samples the responses; vllm has its own random numbers: other tokens than builtin, and other ones in each run
    engine: EngineName = "builtin"
    # of the engine vllm
    vllm: VLLMConfig = VLLMConfig()
    # length of a block of plain text
    block_tokens: int = 2048
    # rows whose prompt is longer than the limit: leave them out and count them, or refuse them
    long_prompts: LongPrompts = "drop"
    # template for prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is
    # saved with the model
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # length limits of prompts and responses, in tokens
    limits: Limits = Limits()
    # what is trained: an adapter on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # the training
    ppo: PPOConfig = PPOConfig()
    # also shows curves, samples, settings and times there (docs/tracking.md)
    track: TrackerName = "none"
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCommand:
    """Win rates against a baseline, judged by a reward model; public test sets; either, or both."""

    # models: transformers folders or names; those that are compared with a baseline have its tokenizer
    models: tuple[str, ...]
    # the baseline of the win rates
    baseline: str | None = None
    # their judge: a folder that `instructrl rm` wrote, preferably not one that a model was trained against
    reward_model: str | None = None
    # their prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str | None = None
    # public test sets (docs/suites.md): NAME, or NAME=FOLDER
    suites: tuple[str, ...] = ()
    # of the public test sets
    suite: SuiteConfig = SuiteConfig()
    # tasks, groups or tags of lm-evaluation-harness (docs/lm_eval.md)
    lm_eval: tuple[str, ...] = ()
    # a folder with more of them: YAML files, whose functions are run
    lm_eval_tasks: str | None = None
    # the first items of each task alone
    lm_eval_limit: int | None = None
    # folder for results.json, which holds the responses too; `instructrl report` makes a page of it
    out: str
    # start over if `out` holds an earlier run
    fresh: bool = False
    # seed of the sampling
    seed: int = 0
    # temperature of the sampling; 0 takes the likeliest token
    temperature: float = 1.0
    # of the weights; unset it is bfloat16 on a GPU, float32 on a CPU
    weights: Precision | None = None
    # which tokens are sampled from, and where a response stops
    sampling: Truncation = Truncation()
    # rows whose prompt is longer than the limit: leave them out and count them, or refuse them
    long_prompts: LongPrompts = "drop"
    # template for prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # also shows curves, samples, settings and times there (docs/tracking.md)
    track: TrackerName = "none"
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # length limits of prompts and responses, in tokens
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        names = [name.rstrip("/") for name in self.paths]
        if not self.models or len(set(names)) < len(names):
            raise ValueError(f"models: found {list(self.models)}, accepted is at least one model, each different")
        options = {name: getattr(self, name) is not None for name in ("baseline", "reward_model", "data")}
        missing = [f"--{name.replace('_', '-')}" for name, given in options.items() if not given]
        if missing and (any(options.values()) or not (self.suites or self.lm_eval)):
            beside = "" if any(options.values()) else ", or --suites, or --lm-eval"
            raise ValueError(f"{', '.join(missing)}: missing, accepted is all that win rates take{beside}")
        require_not_negative(self, "temperature")
        require_positive(self, "lm_eval_limit")

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all models, the baseline first."""
        return self.models if self.baseline is None else (self.baseline, *self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCommand:
    """Who is preferred to whom, by verdicts in files or by a reward model."""

    # annotations of pairs as AlpacaEval writes them: annotations.json files, of one or several judges
    annotations: tuple[str, ...] = ()
    # responses as AlpacaEval writes them: a model_outputs.json of each model, which the reward model judges
    outputs: tuple[str, ...] = ()
    # results.json of `instructrl eval`: its responses, with the scores of its judge
    results: str | None = None
    # files of RewardBench, RewardBench 2 or JudgeBench, or others like them, on which the reward model is measured
    benchmark: tuple[str, ...] = ()
    # a folder that `instructrl rm` wrote: judges the outputs, the annotated pairs once more, and the benchmarks
    reward_model: str | None = None
    # the model that win rates are against; unset it is the first one of every pair, if that is the same one
    baseline: str | None = None
    # alpaca_eval's df_gamed.csv: with it the length-controlled win rate is that of the leaderboard, for annotations of
    # AlpacaEval's own instructions in their order
    gamed: str | None = None
    # new folder for results.json and report.html, and for outputs and annotations as AlpacaEval writes them
    out: str | None = None
    # replace what an earlier `judge` wrote into `out`
    fresh: bool = False
    # of the weights; unset it is bfloat16 on a GPU, float32 on a CPU
    weights: Precision | None = None
    # template in which the reward model reads texts: auto (the tokenizer's, if it has one), none, or a Jinja file
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # where the network lies and runs; unset it is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName | None = None
    # length limits of prompts and responses, in tokens: what is longer is left out and counted
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not (self.annotations or self.outputs or self.results or self.benchmark):
            raise ValueError("annotations, outputs, results, benchmark: found none of them, accepted is at least one")
        for name in ("outputs", "benchmark"):
            if getattr(self, name) and self.reward_model is None:
                raise ValueError(f"{name}: found files and no reward_model, which has to judge them; accepted are both")
        if self.outputs and len(self.outputs) < 2:
            raise ValueError("outputs: found one file, accepted are at least two, of different models")
        if self.reward_model is not None and not (self.annotations or self.outputs or self.benchmark):
            raise ValueError(
                "reward_model: found one with nothing to judge, accepted is one with annotations, outputs or benchmark"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCommand:
    """Sample responses of a model. Without --prompts and --data, each line of the standard input is a prompt."""

    # a policy: a transformers folder or name
    model: str
    # texts to answer
    prompts: tuple[str, ...] = ()
    # or a file of prompts: .jsonl, .jsonl.gz or .parquet, or hub:NAME
    data: str | None = None
    # auto: a text becomes a user message in the tokenizer's chat template, if it has one; none: a text is the prompt as
    # it is; or a Jinja file in place of the tokenizer's
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # responses to each prompt
    samples: int = 1
    # seed of the sampling
    seed: int = 0
    # temperature of the sampling; 0 takes the likeliest token
    temperature: float = 1.0
    # of the weights; unset it is bfloat16 on a GPU, float32 on a CPU
    weights: Precision | None = None
    # which tokens are sampled from, and where a response stops
    sampling: Truncation = Truncation()
    # where the network lies and runs: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # where a response is cut; None is 256, or half of the model's positions if they are fewer than 512
    max_response_tokens: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "samples", "max_response_tokens")
        require_not_negative(self, "temperature")
        if self.prompts and self.data is not None:
            raise ValueError(f"data: found {self.data} beside prompts, accepted is one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCommand:
    """Make whole weights of an adapter and its base."""

    # the folder of an adapter of a policy or a reward model
    model: str
    # a new folder for the merged model
    out: str
    # dtype of the merged weights; None is that of the base that the adapter was trained on
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
class StudyCommand:
    """A study of a base run. run: its folder. folder: that of the study."""

    study: Study
    config: StudyConfig
    run: Path
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
