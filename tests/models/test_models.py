"""Policies, reward models and value functions on three architectures: padding and saving change nothing."""

import pytest
import torch
from tiny import demonstrations, tiny_encoder, tiny_policy
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from instructrl.models.backbone import set_residual_dropout
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.types import Sequences

VOCABULARY = 40
CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    ),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "qwen": Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=CONFIGS)
def policy(request) -> Policy:
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(CONFIGS[request.param])).eval()


def models_of(policy: Policy) -> tuple[Policy, RewardModel, ValueFunction]:
    reward_model = RewardModel.from_policy(policy, torch.Generator().manual_seed(1)).eval()
    reward_model.bias.fill_(0.25)
    return policy, reward_model, ValueFunction.from_reward_model(reward_model).eval()


def sequences_of(*rows: tuple[list[int], list[int]], left: int = 0, right: int = 0) -> Sequences:
    """Rows of (prompt, response), with extra padding on both sides; padding tokens are arbitrary on purpose."""
    width = max(len(p) for p, _ in rows) + left
    length = max(len(r) for _, r in rows) + right
    prompt = torch.full((len(rows), width), 7)
    response = torch.full((len(rows), length), 9)
    prompt_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    response_mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (p, r) in enumerate(rows):
        prompt[i, width - len(p) :] = torch.tensor(p)
        prompt_mask[i, width - len(p) :] = True
        response[i, : len(r)] = torch.tensor(r)
        response_mask[i, : len(r)] = True
    return Sequences(prompt=prompt, prompt_mask=prompt_mask, response=response, response_mask=response_mask)


ROWS = (([3, 4, 5], [6, 7, 8, 0]), ([11], [12, 13]), ([21, 22, 23, 24, 25], [26]))


def assert_equal_up_to_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    # Two orders of summation over two layers of width 32: the rounding of some hundred additions.
    bound = 200 * EPS * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


@torch.no_grad()
def test_padding_changes_nothing(policy):
    for model in models_of(policy):
        tight, padded = model(sequences_of(*ROWS)), model(sequences_of(*ROWS, left=3, right=2))
        if padded.dim() == 2:
            assert bool((padded[:, tight.shape[1] :] == 0).all())
            padded = padded[:, : tight.shape[1]]
        assert_equal_up_to_rounding(padded, tight)


@torch.no_grad()
def test_rows_do_not_see_each_other(policy):
    for model in models_of(policy):
        together = model(sequences_of(*ROWS))
        for i, row in enumerate(ROWS):
            alone = model(sequences_of(row))
            found = together[i] if together.dim() == 1 else together[i, : alone.shape[1]]
            assert_equal_up_to_rounding(found, alone[0])


@torch.no_grad()
def test_log_probabilities_are_those_of_the_logits(policy):
    (prompt, response), sequences = ROWS[0], sequences_of(ROWS[0])
    logits = policy.lm(torch.tensor([prompt + response])).logits.double()
    expected = torch.log_softmax(logits / 0.7, dim=-1)[0]
    expected = torch.stack([expected[len(prompt) - 1 + t, token] for t, token in enumerate(response)])
    assert_equal_up_to_rounding(policy(sequences, 0.7)[0].double(), expected)


@torch.no_grad()
def test_score_is_read_at_the_last_response_token(policy):
    _, reward_model, values = models_of(policy)
    prompt, response = ROWS[0]
    hidden = reward_model.network.base_model(torch.tensor([prompt + response])).last_hidden_state
    expected = reward_model.network.score(hidden)[0, :, 0] + 0.25
    assert_equal_up_to_rounding(reward_model(sequences_of(*ROWS))[0], expected[-1])
    # The value before token t is read where token t is predicted, one position earlier than the token.
    assert_equal_up_to_rounding(values(sequences_of(*ROWS))[0], expected[len(prompt) - 1 : -1])


@torch.no_grad()
def test_value_function_starts_as_a_copy_of_the_reward_model(policy):
    _, reward_model, values = models_of(policy)
    assert float(values.bias) == 0.25
    with torch.no_grad():
        reward_model.network.score.weight.zero_()
    assert float(values.network.score.weight.abs().sum()) > 0


def test_no_logits_are_made(policy, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the full output projection was called")

    monkeypatch.setattr(policy.lm.get_output_embeddings(), "forward", refuse)
    policy(sequences_of(*ROWS)).sum().backward()
    gradient = policy.lm.get_output_embeddings().weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


@torch.no_grad()
def test_saved_folders_load_in_transformers_and_here(policy, tmp_path):
    encoder = tiny_encoder()
    sequences = sequences_of(*ROWS)
    _, reward_model, _ = models_of(policy)
    policy.save(tmp_path / "policy", encoder.tokenizer)
    reward_model.save(tmp_path / "reward", encoder.tokenizer)
    for model, folder in ((policy, "policy"), (reward_model, "reward")):
        loaded = type(model).load(tmp_path / folder).eval()
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
        # Weights mapped from a file are aligned otherwise than allocated ones, which may change the last bit.
        assert_equal_up_to_rounding(loaded(sequences), model(sequences))
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert torch.equal(classifier.score.weight, reward_model.network.score.weight)


def test_a_folder_with_unsafe_weights_is_refused(policy, tmp_path):
    policy.save(tmp_path, tiny_encoder().tokenizer)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    torch.save(policy.lm.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Policy.load(tmp_path)


def test_loaded_networks_have_no_dropout_in_training_mode(tmp_path):
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = Policy.load(tmp_path).train()
    assert loaded.training
    assert not any(module.training for module in loaded.modules() if isinstance(module, nn.Dropout))
    assert loaded.lm.config.resid_pdrop == 0.1, "the configuration is the user's"


def test_residual_dropout_is_on_the_residual_branches_only():
    policy = tiny_policy(tiny_encoder())
    set_residual_dropout(policy.lm, 0.2)
    rates = {name: module.p for name, module in policy.lm.named_modules() if isinstance(module, nn.Dropout)}
    on = {name.split(".", 3)[-1] for name, rate in rates.items() if rate == 0.2}
    assert on == {"attn.resid_dropout", "mlp.dropout"}
    assert {rate for name, rate in rates.items() if not name.endswith(tuple(on))} == {0.0}


def test_residual_dropout_needs_an_architecture_that_has_it():
    llama = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    set_residual_dropout(llama, 0.0)
    with pytest.raises(ValueError, match=r"residual_dropout: found 0\.2"):
        set_residual_dropout(llama, 0.2)


def test_unsaid_residual_dropout_is_the_papers_where_there_is_any():
    gpt2, llama = tiny_policy(tiny_encoder()).lm, AutoModelForCausalLM.from_config(CONFIGS["llama"])
    before = {name: module.p for name, module in llama.named_modules() if isinstance(module, nn.Dropout)}
    for network in (gpt2, llama):
        set_residual_dropout(network, None)
    rates = {name: module.p for name, module in gpt2.named_modules() if name.endswith(("resid_dropout", "mlp.dropout"))}
    assert set(rates.values()) == {0.2}
    assert before == {name: module.p for name, module in llama.named_modules() if isinstance(module, nn.Dropout)}


@torch.no_grad()
def test_an_empty_response_is_scored_at_the_prompt():
    encoder = tiny_encoder()
    _, reward_model, _ = models_of(tiny_policy(encoder))
    rows = demonstrations(2)
    sequences = encoder.pairs([row.prompt for row in rows], ["", "w1 w2"], [False, True])
    assert int(sequences.response_mask[0].sum()) == 0
    assert bool(reward_model(sequences).isfinite().all())
