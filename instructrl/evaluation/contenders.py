"""What a model does on held-out prompts, and what a judge makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from instructrl.data.encoding import Encoder, blocks_as_sequences
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import unsharded
from instructrl.rollout.generate import Sampling, response_texts, sample_rollout
from instructrl.rollout.options import option_logprobs
from instructrl.rollout.scoring import in_batches, score_texts
from instructrl.types import Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A judge's view of one response. score: higher is better, in the judge's own unit. likert: 1 to 7, None where the
    judge gives none. metadata: the paper's yes/no questions (Table 3)."""

    score: float
    likert: float | None = None
    metadata: dict[str, bool] = field(default_factory=dict)


# (prompts, responses, whether each ended by itself) -> a judgement of each
Judge = Callable[[Sequence[str], Sequence[str], Sequence[bool]], list[Judgement]]


# (name, work) -> what the work gives, as JSON has it; work that was done before under the name need not be done again
Once = Callable[[str, Callable[[], Any]], Any]
# Prompts that are answered, judged and scored before what was done is kept: as many as are decoded together.
PORTION = 256


def anew(name: str, work: Callable[[], Any]) -> Any:
    """Keeps nothing."""
    return work()


def _as_asked(prompt: str) -> str:
    return prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model under comparison. form: how it is given a prompt (a few-shot prefix for the prompted GPT). start: of a
    model that PPO did not make of the exam's start, what its own was made of."""

    name: str
    policy: Policy
    form: Callable[[str], str] = _as_asked
    start: Policy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with one right answer, asked by comparing likelihoods."""

    context: str
    correct: str
    alternatives: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a contender did on the test prompts; lists have one entry a prompt.

    rewards: the reward model's scores. kl: nats per response from the model that its PPO started from, None for a
    contender that is given another form of the prompt. block_losses: NLL per token of each block of held-out text; all
    are of one length. fact_accuracy: share of questions answered right, None where there are none.
    """

    name: str
    texts: list[str]
    finished: list[bool]
    num_tokens: list[int]
    judgements: list[Judgement]
    rewards: list[float]
    kl: float | None
    block_losses: list[float]
    fact_accuracy: float | None

    @property
    def corpus_loss(self) -> float:
        """NLL per token of all of the held-out text, in nats."""
        return sum(self.block_losses) / len(self.block_losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What every contender is put through.

    prompts: of held-out users. blocks: [N, L] int64, held-out text. start: the model that PPO started from. judged_by:
    what decides the judgements, a network or settings, as `fingerprint` takes it.
    """

    prompts: Sequence[str]
    blocks: Tensor
    questions: Sequence[Question]
    judge: Judge
    reward_model: RewardModel
    start: Policy
    encoder: Encoder
    sampling: Sampling
    judged_by: Any = None

    def asked(self, contender: Contender) -> list[str]:
        """The prompts as the contender reads them."""
        return [contender.form(prompt) for prompt in self.prompts]

    def take(self, contender: Contender, once: Once = anew) -> Performance:
        """Sample a response to every prompt and measure everything, in portions of which each is done once."""
        asked, policy = self.asked(contender), contender.policy
        answers = [
            once(f"{start:06d}", partial(self._answers, contender, asked, start))
            for start in range(0, len(asked), PORTION)
        ]
        read = once("text", lambda: self._reading(policy))
        rows = {name: [row for portion in answers for row in portion[name]] for name in answers[0]}
        kl = rows.pop("kl") if contender.form is _as_asked else None
        return Performance(
            **rows | {"judgements": [Judgement(**row) for row in rows["judgements"]]},
            name=contender.name,
            kl=None if kl is None else sum(kl) / len(kl),
            **read,
        )

    def _answers(self, contender: Contender, asked: Sequence[str], start: int) -> dict[str, list]:
        """The fields of a `Performance` that have one entry a prompt, for the portion that starts there; kl of each."""
        prompts = self.prompts[start : start + PORTION]
        rollout = sample_rollout(
            contender.policy, self.encoder, asked[start : start + PORTION], self.sampling, first_episode=start
        )
        sequences, finished = rollout.sequences, rollout.finished.tolist()
        texts = response_texts(rollout, self.encoder)
        found = {
            "texts": texts,
            "finished": finished,
            "num_tokens": sequences.response_mask.sum(dim=1).tolist(),
            "judgements": [asdict(row) for row in self.judge(prompts, texts, finished)],
            "rewards": score_texts(self.reward_model, self.encoder, prompts, texts, finished).tolist(),
        }
        return found | ({"kl": self._kl(contender, sequences)} if contender.form is _as_asked else {})

    def _reading(self, policy: Policy) -> dict[str, Any]:
        """The fields of a `Performance` that no response is needed for."""
        return {
            "block_losses": block_losses(policy, self.blocks),
            "fact_accuracy": fact_accuracy(policy, self.encoder, self.questions),
        }

    def _kl(self, contender: Contender, sequences: Sequences) -> list[float]:
        with unsharded(contender.policy) as network:
            own = in_batches(network, sequences)
        with unsharded(contender.start or self.start) as network:
            difference = own - in_batches(network, sequences)
        return difference.sum(dim=1).tolist()


def block_losses(policy: Policy, blocks: Tensor) -> list[float]:
    """NLL per token of each block, in nats. blocks: [N, L] int64 of plain text."""
    sequences = blocks_as_sequences(blocks)
    with unsharded(policy) as network:
        device = network.device
        logprobs = in_batches(network, sequences.to(device), 64).cpu().double().sum(dim=1)
    return (-logprobs / sequences.response_mask.sum(dim=1)).tolist()


def fact_accuracy(policy: Policy, encoder: Encoder, questions: Sequence[Question]) -> float | None:
    """Share of questions whose correct answer has the highest log-probability per token (paper, appendix D)."""
    if not questions:
        return None
    options = [(question.correct, *question.alternatives) for question in questions]
    found = option_logprobs(policy, encoder, [question.context for question in questions], options)
    return sum(row.means[0] > max(row.means[1:]) for row in found) / len(questions)
