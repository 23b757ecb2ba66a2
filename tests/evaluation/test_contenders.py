"""What a contender does in the exam: facts by likelihood per token, responses, KL and scores."""

import random

import pytest
import torch
from tiny import blocks, lively_policy, tiny_encoder, tiny_policy, tiny_reward_model, words

from instructrl.data.encoding import blocks_as_sequences
from instructrl.evaluation.contenders import Contender, Exam, Judgement, Question, fact_accuracy
from instructrl.rollout.generate import Sampling
from instructrl.rollout.scoring import mean_loss


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def policy(encoder):
    return lively_policy(encoder)


def questions(count: int) -> list[Question]:
    rng = random.Random(1)
    return [
        Question(
            context=words(rng), correct=words(rng), alternatives=tuple(words(rng) for _ in range(rng.randint(1, 4)))
        )
        for _ in range(count)
    ]


@torch.no_grad()
def likelihoods(policy, encoder, question: Question) -> list[list[float]]:
    """Log-probabilities of every option's tokens, one option at a time; an option has no end of text."""
    prompt, rows = encoder.prompt(question.context), []
    for option in (question.correct, *question.alternatives):
        response = encoder.response(option, finished=False)
        logprobs = torch.log_softmax(policy.lm(torch.tensor([prompt + response])).logits[0].double(), dim=-1)
        rows.append([float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(response)])
    return rows


def test_facts_are_judged_by_the_likelihood_per_token(policy, encoder):
    asked = questions(40)
    rows = [likelihoods(policy, encoder, question) for question in asked]
    means = [[sum(option) / len(option) for option in row] for row in rows]
    totals = [[sum(option) for option in row] for row in rows]
    right = sum(max(row) == row[0] for row in means) / len(asked)
    assert right != sum(max(row) == row[0] for row in totals) / len(asked)
    assert fact_accuracy(policy, encoder, asked) == right


def test_no_questions_give_no_accuracy(policy, encoder):
    assert fact_accuracy(policy, encoder, []) is None


class Recorder:
    def __init__(self) -> None:
        self.calls = []

    def __call__(self, prompts, texts, finished) -> list[Judgement]:
        self.calls.append((list(prompts), list(texts), list(finished)))
        return [Judgement(score=float(len(text))) for text in texts]


def exam_of(encoder, policy, judge) -> Exam:
    rng = random.Random(3)
    return Exam(
        prompts=[words(rng) for _ in range(9)],
        blocks=blocks(3),
        questions=[],
        judge=judge,
        reward_model=tiny_reward_model(policy),
        start=policy,
        encoder=encoder,
        sampling=Sampling(seed=0, max_response_tokens=6),
    )


def test_the_start_of_ppo_is_at_no_distance_from_itself(policy, encoder):
    performance = exam_of(encoder, policy, Recorder()).take(Contender(name="start", policy=policy))
    assert performance.kl == 0
    assert performance.fact_accuracy is None
    assert max(performance.num_tokens) <= 6
    assert {len(performance.texts), len(performance.rewards), len(performance.judgements)} == {9}


def test_a_model_with_a_start_of_its_own_is_measured_from_that_one(policy, encoder):
    exam, other = exam_of(encoder, policy, Recorder()), tiny_policy(encoder, seed=1)
    assert exam.take(Contender(name="other", policy=other)).kl != 0
    assert exam.take(Contender(name="other", policy=other, start=other)).kl == 0


def test_a_contender_is_judged_on_the_prompt_as_it_was_asked(policy, encoder):
    """The few-shot form is what the model reads; judge and reward model see the prompt itself."""
    judge = Recorder()
    exam = exam_of(encoder, policy, judge)
    plain = exam.take(Contender(name="plain", policy=policy))
    formed = exam.take(Contender(name="formed", policy=policy, form=lambda prompt: f"w7 w8 {prompt}"))
    assert [call[0] for call in judge.calls] == [list(exam.prompts)] * 2
    assert formed.texts != plain.texts
    assert formed.kl is None
    assert formed.block_losses == plain.block_losses
    assert plain.corpus_loss == pytest.approx(mean_loss(policy, [blocks_as_sequences(exam.blocks)]), rel=1e-6)
