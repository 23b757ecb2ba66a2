"""A prompt that is read once for all its completions gives the scores and gradients of separate sequences."""

import pytest
import torch
from tiny import comparisons, lively_policy, tiny_encoder
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from instructrl.data.encoding import preferred_pairs
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.types import Comparison

ENCODER = tiny_encoder()
EPS = torch.finfo(torch.float32).eps
SIZE = len(ENCODER.tokenizer)
LLAMA = dict(
    vocab_size=SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
NETWORKS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SIZE, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA)),
}
ROWS = [
    *comparisons(4, seed=3),
    # No tokens in one completion, cut completions, and the fewest there can be.
    Comparison(prompt="w3 w4", completions=("", "w5 w6"), preferred=frozenset({(1, 0)}), finished=(False, False)),
]


@pytest.fixture(params=sorted(NETWORKS), scope="module")
def reward_model(request):
    torch.manual_seed(0)
    policy = Policy(NETWORKS[request.param]().double())
    return RewardModel.from_policy(policy, torch.Generator().manual_seed(0)).double().eval()


def separate_scores(reward_model, row):
    flags = row.finished or [True] * len(row.completions)
    pairs = zip(row.completions, flags, strict=True)
    return torch.cat([reward_model(ENCODER.pairs([row.prompt], [text], [flag])) for text, flag in pairs])


def test_scores_and_gradients_are_those_of_separate_sequences(reward_model):
    shared = reward_model.shared_prompt_scores(ENCODER.shared_prompts(ROWS))
    expected = [separate_scores(reward_model, row) for row in ROWS]
    assert shared.shape == (len(ROWS), max(len(row.completions) for row in ROWS))
    weights = torch.randn(shared.shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in reward_model.parameters() if p.requires_grad]
    total = sum((shared[p, : len(x)] * weights[p, : len(x)]).sum() for p, x in enumerate(expected))
    truth = sum((x * weights[p, : len(x)]).sum() for p, x in enumerate(expected))
    for found, wanted in zip(shared.detach(), expected, strict=True):
        # Scores are float32 of a float64 network.
        assert float((found[: len(wanted)] - wanted.detach()).abs().max()) <= 20 * EPS * float(
            wanted.detach().abs().max()
        )
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    references = torch.autograd.grad(truth, parameters, allow_unused=True)
    largest = max(float(x.abs().max()) for x in references if x is not None)
    for found, wanted in zip(gradients, references, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            assert float((found - wanted).abs().max()) <= 20 * EPS * largest


@torch.no_grad()
def test_a_completion_does_not_see_another(reward_model):
    row = ROWS[0]
    other = Comparison(
        prompt=row.prompt,
        completions=("w9 w9 w9", *row.completions[1:]),
        preferred=row.preferred,
    )
    first, second = (reward_model.shared_prompt_scores(ENCODER.shared_prompts([x])) for x in (row, other))
    assert float((first[0, 1:] - second[0, 1:]).abs().max()) <= 20 * EPS * float(first.abs().max())
    assert first[0, 0] != second[0, 0]


def test_rows_hold_the_prompt_once():
    shared = ENCODER.shared_prompts(ROWS[:1])
    row = ROWS[0]
    prompt = len(ENCODER.prompt(row.prompt))
    assert int((shared.segments[0] == 0).sum()) == prompt
    for k, text in enumerate(row.completions):
        columns = shared.segments[0] == k + 1
        assert shared.tokens[0, columns].tolist() == ENCODER.response(text)
        assert shared.positions[0, columns].tolist() == list(range(prompt, prompt + int(columns.sum())))
        assert int(shared.last[0, k]) == int(columns.nonzero().max())


def test_preferred_pairs():
    preferred = preferred_pairs(ROWS)
    for p, row in enumerate(ROWS):
        assert {(int(i), int(j)) for i, j in preferred[p].nonzero()} == set(row.preferred)


def test_the_reward_model_of_a_policy_has_the_scores_too():
    model = RewardModel.from_policy(lively_policy(ENCODER), torch.Generator().manual_seed(0))
    with torch.no_grad():
        shared = model.shared_prompt_scores(ENCODER.shared_prompts(ROWS[:2]))
        for found, row in zip(shared, ROWS[:2], strict=True):
            wanted = separate_scores(model, row)
            assert float((found[: len(wanted)] - wanted).abs().max()) <= 100 * EPS * float(wanted.abs().max())
