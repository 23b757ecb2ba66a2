"""A network with more embeddings than its tokenizer has ids: the others are as if they were not there."""

import ast
import warnings
from pathlib import Path

import pytest
import torch
from tiny import blocks, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, PreTrainedTokenizerFast

from instructrl.data.encoding import blocks_as_sequences
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.vocabulary import check_vocabulary, num_ids
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.scoring import mean_loss
from instructrl.trainers.optimization import AdamConfig
from instructrl.trainers.ppo import PPOConfig, PPOTrainer
from instructrl.trainers.sft import SFTConfig, SFTTrainer
from instructrl.types import Sequences

ENCODER = tiny_encoder()
USED, ROWS = 32, 45
# Tied, untied, and with a bias at the output.
CONFIGS = {
    "gpt2": tiny_policy(ENCODER).lm.config,
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=48
    ),
    "gptj": GPTJConfig(n_positions=48, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
}


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path) -> Path:
    """A model whose unnamed embeddings have by far the largest logits."""
    torch.manual_seed(0)
    config = type(CONFIGS[request.param])(**{**CONFIGS[request.param].to_dict(), "vocab_size": ROWS})
    lm = AutoModelForCausalLM.from_config(config)
    head = lm.get_output_embeddings()
    with torch.no_grad():
        for module in (head, lm.get_input_embeddings()):
            module.weight.mul_(10)
            module.weight[USED:].mul_(10)
        if head.bias is not None:
            head.bias[:] = torch.linspace(0, 2, ROWS)
            head.bias[USED:] += 30
    lm.save_pretrained(tmp_path / "model")
    ENCODER.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def policy(folder) -> Policy:
    return Policy.load(folder, ENCODER.tokenizer).eval()


def some_sequences() -> Sequences:
    return ENCODER.demonstrations(demonstrations(5))


def expected_logprobs(policy: Policy, sequences: Sequences) -> torch.Tensor:
    """In float64, of the ids that there are, from the network's own logits of each sequence by itself."""
    found = torch.zeros(sequences.response.shape, dtype=torch.float64)
    for i in range(sequences.num_rows):
        prompt = sequences.prompt[i][sequences.prompt_mask[i]]
        response = sequences.response[i][sequences.response_mask[i]]
        logits = policy.lm(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].double()
        found[i, : len(response)] = logits[:, :USED].log_softmax(dim=1).gather(1, response[:, None])[:, 0]
    return found


@torch.no_grad()
def test_probabilities_are_of_the_ids_that_there_are(policy):
    sequences = some_sequences()
    expected = expected_logprobs(policy, sequences)
    torch.testing.assert_close(policy(sequences).double(), expected, rtol=1e-4, atol=1e-4)
    alone = blocks_as_sequences(blocks(3))
    loss = -expected_logprobs(policy, alone).sum() / int(alone.response_mask.sum())
    assert mean_loss(policy, [alone]) == pytest.approx(float(loss), rel=1e-4)


def test_unnamed_ids_are_not_sampled(policy):
    prompts = [row.prompt for row in demonstrations(40)]
    found = sample_rollout(policy, ENCODER, prompts, Sampling(seed=0, max_response_tokens=8)).sequences
    assert int(found.response.max()) < USED
    policy.num_ids = ROWS  # the fixture is one in which that is no accident
    found = sample_rollout(policy, ENCODER, prompts, Sampling(seed=0, max_response_tokens=8)).sequences
    assert int(found.response.max()) >= USED


def test_gradients_are_those_of_the_definition(policy):
    sequences = some_sequences()
    policy(sequences).sum().backward()
    head = policy.lm.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    found = [x.grad for x in head.parameters()]
    policy.zero_grad()
    expected_logprobs(policy, sequences).sum().backward()
    for ours, parameter in zip(found, head.parameters(), strict=True):
        assert ours is not None
        assert parameter.grad is not None
        assert ours.shape[0] == ROWS
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-3)


def test_what_is_saved_has_all_embeddings(policy, folder, tmp_path):
    policy.save(tmp_path / "saved", ENCODER.tokenizer)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    before = AutoModelForCausalLM.from_pretrained(folder)
    assert saved.get_output_embeddings().weight.shape[0] == ROWS == saved.config.vocab_size
    assert all(map(torch.equal, saved.state_dict().values(), before.state_dict().values()))


def test_trainers_leave_unnamed_embeddings_alone(policy, tmp_path):
    """In SFT with a mix of plain text and in PPO-ptx: learner, reference, sampler and average are copies."""
    adam = AdamConfig(lr=1e-3)
    sft = SFTTrainer(
        policy,
        demonstrations(8),
        ENCODER,
        SFTConfig(adam=adam, batch_size=4, epochs=1, residual_dropout=0.0, pretraining_fraction=0.5),
        seed=0,
        blocks=blocks(8),
    )
    config = PPOConfig(
        num_episodes=8, rollout_batch=8, minibatch=4, num_epochs=1, policy_adam=adam, value_adam=adam, ptx_coef=1.0
    )
    ppo = PPOTrainer(
        Policy.load(tmp_path / "model", ENCODER.tokenizer),
        tiny_reward_model(tiny_policy(ENCODER)),
        [row.prompt for row in demonstrations(8)],
        ENCODER,
        config,
        seed=0,
        blocks=blocks(64),
    )
    for trainer, trained in ((sft, sft.policy), (ppo, ppo.policy)):
        before = {name: x.detach().clone() for name, x in trained.lm.named_parameters()}
        metrics, _ = trainer.train_step()
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
        for name, x in trained.lm.named_parameters():
            if x.shape[0] == ROWS:
                assert torch.equal(x[USED:], before[name][USED:])
            assert not torch.equal(x, before[name]), name
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-3)
    assert ppo.averaged_policy().num_ids == USED


# ---- holes


def holed_tokenizer(largest: int, *, end: int = 3) -> PreTrainedTokenizerFast:
    """Words at ids 1, 2, 4 and at the largest: fewer tokens than ids."""
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "<end>": end, "c": 4, "d": largest}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        (holed_tokenizer(USED + 3), "'d' has the id 35"),
        (holed_tokenizer(6, end=USED), "'<end>' has the id 32"),
    ],
)
def test_the_largest_id_has_to_have_an_embedding(tmp_path, tokenizer, found):
    assert len(tokenizer) < USED
    policy = tiny_policy(ENCODER)
    policy.save(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=f"tokenizer whose {found}, for {USED} embeddings"):
        Policy.load(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=f"tokenizer whose {found}, for {USED} embeddings"):
        check_vocabulary(RewardModel.from_policy(policy, torch.Generator()).network, "x", tokenizer)


def test_the_smaller_of_two_embeddings_counts():
    lm = AutoModelForCausalLM.from_config(
        CONFIGS["llama"].__class__(**{**CONFIGS["llama"].to_dict(), "vocab_size": 40})
    )
    lm.set_output_embeddings(nn.Linear(32, 36, bias=False))
    check_vocabulary(lm, "x", holed_tokenizer(35))
    with pytest.raises(ValueError, match="for 36 embeddings"):
        check_vocabulary(lm, "x", holed_tokenizer(36))


def test_holes_are_told(tmp_path):
    tokenizer = holed_tokenizer(11)
    tiny_policy(ENCODER).save(tmp_path, tokenizer)
    with pytest.warns(UserWarning, match="found 6 ids below 11 that no token has"):
        policy = Policy.load(tmp_path, tokenizer)
    assert (policy.num_ids, num_ids(tokenizer), len(tokenizer)) == (12, 12, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Policy.load(tmp_path, ENCODER.tokenizer)


def test_every_policy_meets_its_tokenizer():
    """One that is loaded without is over all embeddings, which nothing that is carried out wants."""
    root = Path(__file__).parent.parent.parent
    calls = [
        (path, node)
        for part in ("instructrl", "benchmarks")
        for path in (root / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Policy.load"
    ]
    assert len(calls) > 5
    assert [f"{path}:{node.lineno}" for path, node in calls if len(node.args) != 2] == []
