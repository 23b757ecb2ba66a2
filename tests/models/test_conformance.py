"""Networks do what they were checked for: other attention, other positions, other heads, noise, and what is refused."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_encoder
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MiniCPM3Config,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    Starcoder2Config,
    T5Config,
)

from instructrl.models import conformance
from instructrl.models.backbone import check_context, load_causal_lm
from instructrl.models.paths import BATCHES, SEPARATE, SHARED, position_ids
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.trainers.likelihood import accumulate_likelihood_gradient
from instructrl.types import Comparison, Sequences

ENCODER = tiny_encoder(max_prompt_tokens=12, max_response_tokens=20)
SIZE = len(ENCODER.tokenizer)
END = ENCODER.end_of_text
SPECIAL = dict(bos_token_id=END, eos_token_id=END, pad_token_id=None)
WIDTHS = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SIZES = dict(vocab_size=SIZE, **WIDTHS, num_key_value_heads=2, max_position_embeddings=64, **SPECIAL)
ROPE = dict(rope_theta=10000.0)
WINDOWED = {
    "mistral": MistralConfig(sliding_window=8, **SIZES),
    "qwen2": Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=1, **SIZES),
    "starcoder2": Starcoder2Config(sliding_window=8, **SIZES),
    "phi3": Phi3Config(sliding_window=8, **SIZES),
    "gpt_neo": GPTNeoConfig(
        **dict(vocab_size=SIZE, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64),
        **dict(attention_types=[[["global", "local"], 1]], window_size=8),
        **SPECIAL,
    ),
    "bloom": BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=4, **SPECIAL),
    "falcon": FalconConfig(alibi=True, new_decoder_architecture=False, **SIZES),
}
# With what is made of the projection: scale and cap.
SHAPED = {
    "gemma2": (Gemma2Config(head_dim=8, **SIZES), 1.0, 30.0),
    "gemma3": (Gemma3TextConfig(final_logit_softcapping=3.0, head_dim=8, **SIZES), 1.0, 3.0),
    "cohere": (CohereConfig(logit_scale=0.3, **SIZES), 0.3, None),
    "granite": (GraniteConfig(logits_scaling=3.0, **SIZES), 1 / 3, None),
    "minicpm3": (
        MiniCPM3Config(
            **{**SIZES, "num_key_value_heads": 4},
            **dict(
                dim_model_base=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8
            ),
        ),
        1 / 8,
        None,
    ),
}
SAMPLED = {**WINDOWED, **{name: config for name, (config, *_) in SHAPED.items()}}
PROMPTS = ["w1 w2 w3 w4 w5", "w7"]


def network(config, seed=0):
    """With weights under which every token matters."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return lm


def comparison():
    """Responses of 14, 5 and 12 words."""
    texts = (" ".join(f"w{i}" for i in range(start, start + count)) for start, count in ((3, 14), (9, 5), (12, 12)))
    return Comparison(prompt=PROMPTS[0], completions=tuple(texts), preferred=frozenset({(0, 1)}))


@pytest.mark.parametrize("name", sorted(WINDOWED))
@torch.no_grad()
def test_a_saved_reward_model_scores_as_it_was_trained(name, tmp_path):
    """Trained by shared prompts beyond every window, and read by transformers sequence by sequence."""
    policy = Policy(network(WINDOWED[name]))
    reward_model = RewardModel.from_policy(policy, torch.Generator().manual_seed(0)).double().eval()
    trained = reward_model.shared_prompt_scores(ENCODER.shared_prompts([comparison()]))[0]
    reward_model.save(tmp_path, ENCODER.tokenizer)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    for found, text in zip(trained, comparison().completions, strict=True):
        ids = torch.tensor([ENCODER.prompt(PROMPTS[0]) + ENCODER.response(text)])
        states = theirs.base_model(input_ids=ids, use_cache=False).last_hidden_state
        assert abs(float(found) - float(theirs.score(states[0, -1]))) < 1e-5


@pytest.mark.parametrize("name", sorted(SHAPED))
def test_what_logits_are_of_a_projection(name):
    config, scale, softcap = SHAPED[name]
    policy = Policy(network(config))
    assert policy.logit_settings.scale == pytest.approx(scale, rel=1e-7)
    assert policy.logit_settings.softcap == softcap
    ids = torch.arange(12).remainder(SIZE)[None]
    real = torch.ones(1, 12, dtype=torch.bool)
    rows = Sequences(prompt=ids[:, :4], prompt_mask=real[:, :4], response=ids[:, 4:], response_mask=real[:, 4:])
    (found,), _ = accumulate_likelihood_gradient(policy, [(1.0, rows)], 1)
    gradients = [x.grad.clone() for x in policy.parameters()]
    policy.zero_grad()
    logits = policy.lm(input_ids=ids, use_cache=False).logits[0, 3:-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 4:])
    loss.backward()
    assert found == pytest.approx(loss.item(), rel=1e-6)
    for gradient, x in zip(gradients, policy.parameters(), strict=True):
        torch.testing.assert_close(gradient, x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(SAMPLED))
@torch.no_grad()
def test_samples_have_the_likelihood_of_the_plain_network(name):
    """The sampler takes tokens where the plain forward pass of the sequence so far has them, whatever the padding."""
    policy = Policy(network(SAMPLED[name]))
    prompts = ["w1 w2 w3 w4 w5 w6", "w7", "w8 w9"]
    rollout = sample_rollout(policy, ENCODER, prompts, Sampling(seed=1, max_response_tokens=12))
    logprobs = policy(rollout.sequences)
    for i, prompt in enumerate(prompts):
        response = rollout.sequences.response[i][rollout.sequences.response_mask[i]]
        ids = torch.cat([torch.tensor(ENCODER.prompt(prompt)), response])
        logits = policy.lm(input_ids=ids[None], use_cache=False).logits[0, -len(response) - 1 : -1]
        truth = logits.log_softmax(-1).gather(1, response[:, None])[:, 0]
        assert float((logprobs[i, : len(response)] - truth).abs().max()) < 1e-4
        # Each token is the first whose cumulative probability exceeds the same uniform number.
        again = sample_rollout(policy, ENCODER, [prompt], Sampling(seed=1, max_response_tokens=12), first_episode=i)
        assert again.sequences.response[0, : len(response)].tolist() == response.tolist()


def test_a_head_on_other_states_is_refused():
    policy = Policy(network(LlamaConfig(**SIZES)))
    policy.paths = replace(policy.paths, no_scalar_head="a class whose states are others")
    with pytest.raises(ValueError, match=r"^model llama: found a class whose states are others; accepted are"):
        RewardModel.from_policy(policy, torch.Generator())


@pytest.mark.parametrize(("name", "told"), [("bloom", 1), ("mistral", 0)])
def test_one_sequence_a_completion_is_told_once(name, told, recwarn):
    policy = Policy(network(WINDOWED[name]))
    reward_model = RewardModel.from_policy(policy, torch.Generator().manual_seed(0)).double().eval()
    for _ in range(2):
        reward_model.shared_prompt_scores(ENCODER.shared_prompts([comparison()]))
    assert len([w for w in recwarn if "read a prompt once" in str(w.message)]) == told


NOISY = {
    "starcoder2": Starcoder2Config(residual_dropout=0.5, embedding_dropout=0.5, attention_dropout=0.5, **SIZES),
    "opt": OPTConfig(
        **dict(vocab_size=SIZE, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
        **dict(max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5),
        **{**SPECIAL, "pad_token_id": 1},
    ),
    "mixtral": MixtralConfig(router_jitter_noise=0.5, num_local_experts=4, num_experts_per_tok=2, **SIZES),
    "phimoe": PhimoeConfig(
        **dict(input_jitter_noise=0.5, router_jitter_noise=0.5, attention_dropout=0.5, num_local_experts=4), **SIZES
    ),
    "llama": LlamaConfig(attention_dropout=0.5, **SIZES),
    "bloom": BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.5, **SPECIAL),
    "gemma3": Gemma3Config(
        text_config=dict(attention_dropout=0.5, head_dim=8, **SIZES),
        vision_config=dict(**WIDTHS, image_size=16, patch_size=8),
        mm_tokens_per_image=4,
    ),
}


@pytest.mark.parametrize("name", sorted(NOISY))
@torch.no_grad()
def test_two_passes_in_training_mode_agree(name):
    policy = Policy(network(NOISY[name]).float()).train()
    reward_model = RewardModel.from_policy(policy, torch.Generator().manual_seed(0)).train()
    sequences = ENCODER.pairs(PROMPTS, ["w3 w4", "w5 w6 w7 w8"])
    assert torch.equal(policy(sequences), policy(sequences))
    assert torch.equal(reward_model(sequences), reward_model(sequences))
    assert policy.training
    assert reward_model.training


FACTORS = [1.0, 2.0, 3.0, 4.0]
BORDERED = {
    "longrope": (
        Phi3Config(
            rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": FACTORS},
            original_max_position_embeddings=16,
            **SIZES,
        ),
        16,
    ),
    "dynamic": (LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 4.0}, **SIZES, **ROPE), 64),
}


@pytest.mark.parametrize("name", sorted(BORDERED))
def test_sequences_beyond_a_change_of_all_positions_are_refused(name):
    config, border = BORDERED[name]
    policy = Policy(network(config))
    assert policy.paths.longest == border
    check_context(policy.lm, border)
    with pytest.raises(ValueError, match=r"limits: found .* tokens in a sequence, accepted are up to"):
        check_context(policy.lm, border + 1)


@torch.no_grad()
def test_below_the_border_a_row_is_what_it_is_alone():
    config, border = BORDERED["longrope"]
    policy = Policy(network(config))
    sequences = ENCODER.pairs(PROMPTS, ["w3 w4", "w5 w6 w7 w8"])
    assert sequences.tokens.shape[1] <= border
    together = policy(sequences)
    for i in range(2):
        alone = policy(sequences.select(torch.tensor([i])))
        assert float((together[i] - alone[0]).abs().max()) < 1e-5


def test_limits_of_the_text_part_hold():
    config = copy.deepcopy(NOISY["gemma3"])
    config.text_config.max_position_embeddings = 32
    with pytest.raises(ValueError, match="limits: found 100 tokens in a sequence, accepted are up to the 32 positions"):
        check_context(network(config), 100)


REFUSED = {
    "a head of its own": (
        ModernBertDecoderConfig(**{**SIZES, "pad_token_id": 0}),
        "logits are no projection of its states",
    ),
    "recurrent": (MambaConfig(vocab_size=SIZE, hidden_size=32, num_hidden_layers=2), "recurrent"),
    "not causal": (BertConfig(**WIDTHS, vocab_size=SIZE), "depend on later tokens"),
    "encoder and decoder": (
        T5Config(vocab_size=SIZE, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8),
        "no language model of this architecture",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_networks_are_refused_before_their_weights_are_read(name, tmp_path):
    config, words = REFUSED[name]
    config.save_pretrained(tmp_path)  # and no weights
    with pytest.raises(ValueError, match=words) as refusal:
        load_causal_lm(tmp_path)
    assert "accepted are" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def wrong(*inputs, **options):
    raise ValueError("not for this network")


def examined(config):
    return conformance._examine(conformance.shrunken(config), type(network(config)), torch.float64)


def test_a_path_that_differs_is_not_taken(monkeypatch):
    config = LlamaConfig(**SIZES)
    usual = examined(config)
    assert (usual.batch, usual.steps, usual.shared) == ("padded", "cached, prefix once", "one mask")
    truth = dict(BATCHES)["padded"]
    # Positions from the columns: right without padding, and only there.
    monkeypatch.setitem(
        BATCHES,
        "padded",
        lambda net, tokens, mask: (
            net.base_model(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=torch.arange(tokens.shape[1])[None] // 2,
                use_cache=False,
            ).last_hidden_state
        ),
    )
    monkeypatch.setitem(SHARED, "one mask", lambda net, rows: (rows.segments >= 0).long())
    found = examined(config)
    assert found.batch != "padded"
    assert found.shared == SEPARATE
    monkeypatch.setitem(BATCHES, "padded", lambda net, tokens, mask: truth(net, tokens, mask) + 0.01)
    assert examined(config).batch != "padded"


def test_a_network_without_a_path_is_refused(monkeypatch):
    for row in BATCHES:
        monkeypatch.setitem(BATCHES, row, wrong)
    with pytest.raises(ValueError, match="LlamaForCausalLM, whose states depend on other sequences"):
        examined(LlamaConfig(**SIZES))


def test_a_context_under_another_name_is_checked():
    lm = network(MptConfig(vocab_size=SIZE, d_model=32, n_layers=2, n_heads=4, max_seq_len=24))
    check_context(lm, 24)
    with pytest.raises(ValueError, match="found 25 tokens in a sequence, accepted are up to the 24 positions"):
        check_context(lm, 25)


def test_what_was_found_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conformance, "_KEPT", {})
    config = LlamaConfig(**SIZES)
    first = conformance.paths_of(config)
    (file,) = (tmp_path / "instructrl" / "paths").iterdir()
    monkeypatch.setattr(conformance, "_KEPT", {})
    monkeypatch.setattr(conformance, "_outcome", lambda *_: pytest.fail("examined again"))
    assert conformance.paths_of(config) == first
    for damage in ("{", "[]", json.dumps({"batch": "padded"})):
        file.write_text(damage, encoding="utf-8")
        monkeypatch.setattr(conformance, "_KEPT", {})
        monkeypatch.setattr(conformance, "_outcome", lambda *_: {"refused": "looked again"})
        with pytest.raises(ValueError, match="looked again"):
            conformance.paths_of(config)


def test_the_same_configuration_in_another_folder_is_not_examined_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conformance, "_KEPT", {})
    first = conformance.paths_of(LlamaConfig(**SIZES))
    monkeypatch.setattr(conformance, "_outcome", lambda *_: pytest.fail("examined again"))
    labels = dict(name_or_path="elsewhere", num_labels=1, architectures=["X"], instructrl_score_bias=0.5)
    assert conformance.paths_of(LlamaConfig(**SIZES, **labels)) == first


def test_every_process_of_a_job_examines():
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert examined(LlamaConfig(**SIZES)).batch == "padded"
    finally:
        dist.destroy_process_group()


def test_another_configuration_is_examined_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conformance, "_KEPT", {})
    plain = conformance.paths_of(MistralConfig(sliding_window=None, **SIZES))
    windowed = conformance.paths_of(MistralConfig(sliding_window=8, **SIZES))
    assert (plain.shared, windowed.shared) == ("one mask", "a mask with the window")


def test_weights_that_differ_from_their_architecture_are_refused(monkeypatch):
    lm = network(LlamaConfig(**SIZES))
    paths = conformance.paths_of(lm.config)
    conformance.check_weights(lm, lm.lm_head, paths)
    later = lm.model.layers[0].register_forward_hook(lambda *x: x[2].flip(1) if torch.is_tensor(x[2]) else x[2])
    with pytest.raises(ValueError, match="depend on padding or later tokens"):
        conformance.check_weights(lm, lm.lm_head, paths)
    later.remove()
    with torch.no_grad():
        lm.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        conformance.check_weights(lm, lm.lm_head, paths)


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, True, True], [True, True, False]])
    assert position_ids(mask).tolist() == [[0, 0, 1], [0, 1, 1]]


def test_separate_rows_are_those_of_the_responses():
    rows = ENCODER.shared_prompts(
        [
            Comparison(prompt="w1 w2", completions=("w3", "", "w4 w5"), preferred=frozenset({(0, 1)})),
            Comparison(prompt="w6", completions=("w7 w8 w9", "w1"), preferred=frozenset({(0, 1)})),
        ]
    )
    found = rows.separate()
    wanted = [("w1 w2", "w3"), ("w1 w2", ""), ("w1 w2", "w4 w5"), ("w6", "w7 w8 w9"), ("w6", "w1"), ("w6", None)]
    for i, (prompt, response) in enumerate(wanted):
        assert found.prompt[i][found.prompt_mask[i]].tolist() == ENCODER.prompt(prompt)
        assert found.response[i][found.response_mask[i]].tolist() == (
            [] if response is None else ENCODER.response(response)
        )
