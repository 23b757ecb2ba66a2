"""Settings of the models that those trained from people are compared with."""

from dataclasses import dataclass

from instructrl.settings import require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineConfig:
    """The prompted model, and models tuned on mixtures as those of FLAN and T0."""

    # examples of each of the two mixtures, each learned once; 0 makes no FLAN-like and no T0-like model
    examples: int = 6_000
    # examples of one task in a mixture, at most
    cap_per_task: int = 1_000
    # the two peak learning rates that are tried on each mixture; a cosine ends at a tenth
    lower_lr: float = 4e-4
    higher_lr: float = 6e-4
    # examples in an optimiser step
    batch_size: int = 32
    # models that are kept on the way, about evenly; the reward model chooses among those of both learning rates
    num_kept: int = 7
    # YAML file with a list of prefixes for the prompted model, each a text with {prompt} in it; None makes some from
    # demonstrations
    prefixes: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "cap_per_task", "lower_lr", "higher_lr", "batch_size", "num_kept")
        if self.examples < 0:
            raise ValueError(f"examples: found {self.examples}, accepted are numbers from 0")
        if self.lower_lr >= self.higher_lr:
            raise ValueError(f"lower_lr: found {self.lower_lr}, accepted is less than higher_lr {self.higher_lr}")

    @property
    def keep_every_examples(self) -> int:
        return -(-self.examples // self.num_kept)
