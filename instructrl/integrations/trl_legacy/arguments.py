"""The arguments of TRL's trainer up to 0.11: each is honoured, has no effect on what is computed, or is refused."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from instructrl.ops.advantage_settings import GAESettings, RewardSettings
from instructrl.ops.ppo_settings import KLEstimator, PolicySettings, PPOSettings, ValueSettings
from instructrl.settings import require_not_negative, require_positive
from instructrl.trainers.settings import AdamConfig

# TRL's names of estimates of the KL, and those of `ops.ppo_settings.KL_ESTIMATORS`.
KL_PENALTIES = {"kl": "k1", "abs": "abs", "mse": "k2"}
# Names for a tracker, and what TRL works out by itself: they change no number.
NO_EFFECT = {
    *("exp_name", "task_name", "model_name", "query_dataset", "reward_model", "tracker_project_name", "compare_steps"),
    *("optimize_cuda_cache", "optimize_device_cache", "dataset_num_proc", "is_peft_model"),
}
_INSTEAD = {
    "log_with": "None, with what `step` returns, or project_kwargs={'logging_dir': FOLDER} for metrics.jsonl",
    "tracker_kwargs": "{}: there is no tracker here",
    "accelerator_kwargs": "{}: there is no accelerator here",
    "push_to_hub_if_best_kwargs": "{}, with `save_pretrained` and an upload of that folder",
    "is_encoder_decoder": "None or False: networks here are decoders alone",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig:
    """TRL 0.11's `PPOConfig`, with its own values where nothing is said. Raises ValueError for what is not honoured."""

    # of sampling, and of the order of minibatches
    seed: int = 0
    # of Adam, whose betas and epsilon are PyTorch's
    learning_rate: float = 1.41e-5
    # the coefficient of the KL follows the measured KL
    adap_kl_ctrl: bool = True
    # the coefficient at first
    init_kl_coef: float = 0.2
    # "kl", "abs" or "mse"
    kl_penalty: Literal["kl", "abs", "mse"] = "kl"
    # KL in nats that the coefficient is to keep to
    target: float = 6.0
    # episodes over which it moves
    horizon: float = 10_000.0
    # of later rewards
    gamma: float = 1.0
    # of generalised advantage estimation
    lam: float = 0.95
    # of the ratio
    cliprange: float = 0.2
    # of the value's change
    cliprange_value: float = 0.2
    # of the value loss beside the policy loss
    vf_coef: float = 0.1
    # rows that `step` is given
    batch_size: int = 128
    # another name of mini_batch_size
    forward_batch_size: int | None = None
    # rows of one forward pass, whose loss is one mean
    mini_batch_size: int = 128
    # of these in an optimiser step
    gradient_accumulation_steps: int = 1
    # passes over what `step` is given
    ppo_epochs: int = 4
    # clips the gradient's norm; None does not
    max_grad_norm: float | None = None
    # of the epochs of a step, where the policy has moved 1.5 times target_kl from the one that sampled
    early_stopping: bool = False
    # nats a token
    target_kl: float = 1.0
    # a minibatch with a larger mean ratio teaches nothing
    ratio_threshold: float = 10.0
    # divide scores by the standard deviation of all so far
    use_score_scaling: bool = False
    # and take their mean from them
    use_score_norm: bool = False
    # scores are clamped to so much on both sides
    score_clip: float | None = None
    # to a variance of 1, the mean as it was
    whiten_rewards: bool = False
    # less memory, more time
    gradient_checkpointing: bool = False
    # columns of a data set that neither the model nor a log reads are left out
    remove_unused_columns: bool = True
    # {"logging_dir": FOLDER}: where `log_stats` writes
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    # episodes that somebody means to sample; nothing is read from it but the number of steps
    steps: int = 20_000
    exp_name: str | None = None
    task_name: str | None = None
    model_name: str | None = "gpt2"
    query_dataset: str | None = "stanfordnlp/imdb"
    reward_model: str | None = "sentiment-analysis:lvwerra/distilbert-imdb"
    tracker_project_name: str = "trl"
    compare_steps: int = 1
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool = False
    dataset_num_proc: int | None = None
    is_peft_model: bool | None = None
    log_with: str | None = None
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    push_to_hub_if_best_kwargs: dict[str, Any] = field(default_factory=dict)
    is_encoder_decoder: bool | None = None
    world_size: int | None = None
    backward_batch_size: int | None = None
    global_backward_batch_size: int | None = None
    global_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in (*_INSTEAD, "world_size", "backward_batch_size", "global_backward_batch_size", "global_batch_size"):
            if value := getattr(self, name):
                instead = _INSTEAD.get(name, "None: it follows from the rest")
                raise ValueError(f"{name}: found {value!r}, accepted is {instead}")
        if other := set(self.project_kwargs) - {"logging_dir"}:
            raise ValueError(f"project_kwargs: found {', '.join(sorted(other))}, accepted is logging_dir alone")
        if self.kl_penalty not in KL_PENALTIES:
            raise ValueError(
                f"kl_penalty: found {self.kl_penalty!r}, accepted are {', '.join(KL_PENALTIES)}: a KL over all tokens "
                "would keep every logit"
            )
        require_positive(self, "learning_rate", "target", "horizon", "batch_size", "mini_batch_size", "ppo_epochs")
        require_positive(
            self, "gradient_accumulation_steps", "forward_batch_size", "max_grad_norm", "target_kl", "steps"
        )
        require_positive(self, "ratio_threshold", "score_clip")
        require_not_negative(self, "init_kl_coef", "vf_coef", "cliprange", "cliprange_value")
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("use_score_norm: found True without use_score_scaling, accepted are both, or the latter")
        if self.batch_size % (self.rows_of_a_pass * self.gradient_accumulation_steps):
            raise ValueError(
                f"batch_size: found {self.batch_size}, accepted are multiples of mini_batch_size times "
                f"gradient_accumulation_steps, {self.rows_of_a_pass * self.gradient_accumulation_steps}"
            )

    @property
    def rows_of_a_pass(self) -> int:
        return self.forward_batch_size or self.mini_batch_size

    @property
    def total_ppo_epochs(self) -> int:
        """How often `step` is to be called."""
        return math.ceil(self.steps / self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def adam(self) -> AdamConfig:
        return AdamConfig(lr=self.learning_rate, beta2=0.999, max_grad_norm=self.max_grad_norm)

    @property
    def losses(self) -> PPOSettings:
        # A ratio is not negative: a clip range above 1 bounds it from above only.
        policy = PolicySettings(clip_low=min(self.cliprange, 1.0), clip_high=self.cliprange)
        return PPOSettings(policy=policy, value=ValueSettings(cliprange=self.cliprange_value), vf_coef=self.vf_coef)

    @property
    def rewards(self) -> RewardSettings:
        """Tokens of a response that do not count discount what is behind them, as in TRL."""
        return RewardSettings(kl=KLEstimator(estimator=KL_PENALTIES[self.kl_penalty]), gae=GAESettings(gaps="count"))
