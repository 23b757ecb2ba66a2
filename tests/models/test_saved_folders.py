"""What transformers makes of the folders that are saved here: where its generation ends, and which score it gives."""

import json
import random
from pathlib import Path

import pytest
import torch
from tiny import NUM_WORDS, lively_policy, tiny_encoder, tiny_policy, tiny_reward_model, words
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.rollout.generate import Sampling, sample_rollout, sample_texts
from instructrl.types import Sequences

ENCODER = tiny_encoder()
END = ENCODER.end_of_text
ROWS = len(ENCODER.tokenizer) + 1
CONFIGS = {
    "gpt2": GPT2Config(n_positions=48, n_embd=32, n_layer=2, n_head=2),
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=48
    ),
    "neox": GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=48
    ),
    "opt": OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=48,
        dropout=0.0,
    ),
}


def network(kind: str, **fields: object):
    torch.manual_seed(0)
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), "vocab_size": ROWS, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


# ---- where a response ends


def saved_ends(folder: Path) -> tuple[object, object, object]:
    config, generation = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    return AutoTokenizer.from_pretrained(folder).eos_token_id, config["eos_token_id"], generation["eos_token_id"]


@pytest.mark.parametrize("before", [0, 5, None, -1, [0], ROWS + 3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_the_tokenizers_end_is_named_in_all_three_places(tmp_path, kind, before):
    lm = network(kind, bos_token_id=0, eos_token_id=before, pad_token_id=None)
    Policy(lm).save(tmp_path, ENCODER.tokenizer)
    assert saved_ends(tmp_path) == (END, END, END)
    Policy.load(tmp_path, ENCODER.tokenizer).save(tmp_path / "again", ENCODER.tokenizer)
    assert saved_ends(tmp_path / "again") == (END, END, END)


def test_transformers_generation_stops_where_ours_does(tmp_path):
    policy = lively_policy(ENCODER)
    policy.lm.config.eos_token_id = policy.lm.generation_config.eos_token_id = 0
    policy.save(tmp_path, ENCODER.tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    rng, stopped = random.Random(0), 0
    for number in range(12):
        prompt = torch.tensor([ENCODER.prompt(words(rng))])
        torch.manual_seed(number)
        found = loaded.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, max_new_tokens=12)
        response = found[0, prompt.shape[1] :].tolist()
        assert END not in response[:-1]
        stopped += response[-1] == END
    assert stopped


def test_a_nested_configuration_names_it_too(tmp_path):
    """As in a model of text and pictures, whose language model has a configuration of its own."""
    widths = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    both = Gemma3Config(
        text_config=dict(**widths, num_key_value_heads=2, head_dim=8, vocab_size=ROWS, eos_token_id=0),
        vision_config=dict(**widths, image_size=16, patch_size=8),
        mm_tokens_per_image=4,
        eos_token_id=0,
    )
    Policy(AutoModelForCausalLM.from_config(both)).save(tmp_path, ENCODER.tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["text_config"]["eos_token_id"]) == (END, END)


def test_settings_that_transformers_finds_odd_can_be_saved(tmp_path):
    """Published models have a temperature without sampling: training may not end in an error for it."""
    policy = tiny_policy(ENCODER)
    policy.save(tmp_path, ENCODER.tokenizer)
    path = tmp_path / "generation_config.json"
    odd = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [0, END]}
    path.write_text(json.dumps(odd))
    loaded = Policy.load(tmp_path, ENCODER.tokenizer)
    loaded.save(tmp_path / "again", ENCODER.tokenizer)
    found = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert (found["temperature"], found["eos_token_id"]) == (0.6, [END, 0])


OTHERS = [4, 9, 11]  # "w3", "w8", "w10"


@pytest.fixture
def several(tmp_path) -> Policy:
    """A model of which `generation_config.json` lists several ends."""
    lively_policy(ENCODER, unnamed=4).save(tmp_path / "model", ENCODER.tokenizer)
    listed = [OTHERS[0], END, *OTHERS[1:], OTHERS[0], -1, 34, 1000]  # 34 has an embedding and no token
    GenerationConfig(eos_token_id=listed).save_pretrained(tmp_path / "model")
    return Policy.load(tmp_path / "model", ENCODER.tokenizer).eval()


PROMPTS = [words(random.Random(i)) for i in range(40)]
SAMPLING = Sampling(seed=3, max_response_tokens=8, batch_size=16)


def test_a_response_ends_at_each_of_several(several):
    rollout = sample_rollout(several, ENCODER, PROMPTS, SAMPLING)
    rows, ends = rollout.sequences, set()
    for response, mask, finished in zip(rows.response, rows.response_mask, rollout.finished.tolist(), strict=True):
        ids = response[mask].tolist()
        assert not {END, *OTHERS} & set(ids[:-1])
        assert finished == (ids[-1] in {END, *OTHERS})
        ends |= {ids[-1]} if finished else set()
    assert len(ends) > 2


def test_the_token_that_ended_a_response_is_not_in_its_text(several):
    samples = sample_texts(several, ENCODER, PROMPTS, SAMPLING)
    rollout = sample_rollout(several, ENCODER, PROMPTS, SAMPLING)
    assert samples.finished == rollout.finished.tolist()
    rows = rollout.sequences
    for text, response, mask, finished in zip(
        samples.texts, rows.response, rows.response_mask, samples.finished, strict=True
    ):
        ids = response[mask].tolist()
        assert ENCODER.response(text, finished=False) == (ids[:-1] if finished else ids)


def test_several_are_kept_with_the_tokenizers_first(several, tmp_path):
    several.save(tmp_path / "again", ENCODER.tokenizer)
    assert saved_ends(tmp_path / "again") == (END, END, [END, *OTHERS])
    assert Policy.load(tmp_path / "again", ENCODER.tokenizer).ends(END) == [END, *OTHERS]
    other = word_tokenizer([f"w{i}" for i in range(NUM_WORDS - 1)])
    assert several.ends(other.eos_token_id) == [END - 1, *OTHERS[:1], END, *OTHERS[1:]]


def test_a_list_in_the_configuration_counts_where_there_is_no_other():
    assert Policy(network("llama", eos_token_id=[2, 7])).ends(END) == [END, 2, 7]
    assert Policy(network("llama", eos_token_id=7)).ends(END) == [END]


@torch.no_grad()
def test_the_reward_model_reads_the_end_that_it_learned(several):
    """Whichever token ended a response: what is scored in PPO is what is scored as a text."""
    rollout = sample_rollout(several, ENCODER, PROMPTS, SAMPLING)
    read = rollout.closed(END)
    samples = sample_texts(several, ENCODER, PROMPTS, SAMPLING)
    as_texts = ENCODER.pairs(PROMPTS, samples.texts, samples.finished)
    assert torch.equal(read.response[read.response_mask], as_texts.response[as_texts.response_mask])
    changed = read.response != rollout.sequences.response
    assert changed.any()
    assert set(rollout.sequences.response[changed].tolist()) <= set(OTHERS)


# ---- which score it gives


def with_padding(padding: str | None):
    tokenizer = word_tokenizer([f"w{i}" for i in range(NUM_WORDS)])
    if padding is not None:
        tokenizer.add_special_tokens({"pad_token": padding})
    return tokenizer


def ours(reward_model: RewardModel, ids: list[int]) -> float:
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    rows = Sequences(prompt=tokens[:, :2], prompt_mask=mask[:, :2], response=tokens[:, 2:], response_mask=mask[:, 2:])
    return float(reward_model(rows)[0] - reward_model.bias)


@torch.no_grad()
@pytest.mark.parametrize("padding", [None, "<|endoftext|>", "<unk>", "w4", "<pad>"])
@pytest.mark.parametrize("before", [None, END, 3, ROWS - 1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_scores_as_we_do(tmp_path, kind, before, padding):
    """Of a sequence by itself, whatever it ends with; of a batch, where the tokenizer has a token for padding alone."""
    tokenizer = with_padding(padding)
    lm = network(kind, bos_token_id=0, eos_token_id=0, pad_token_id=before)
    reward_model = RewardModel.from_policy(Policy(lm), torch.Generator().manual_seed(1)).eval()
    reward_model.bias.fill_(0.5)
    reward_model.save(tmp_path, tokenizer)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    own = padding == "<pad>"
    rows = [[3, 7, last] for last in range(ROWS) if not (own and last == tokenizer.pad_token_id)] + [[5, 0, END, END]]
    alone = [float(loaded(torch.tensor([row])).logits) for row in rows]
    expected = [ours(reward_model, row) for row in rows]
    torch.testing.assert_close(torch.tensor(alone), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    batch = [[3, 7, END], [9, 8, 7, 6, END], [4, 0, 3]]
    if own:
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        expected = [ours(reward_model, row) for row in batch]
        torch.testing.assert_close(loaded(**padded).logits[:, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="batch sizes > 1"):
            loaded(torch.tensor([[3, 7, END], [9, 8, 7]]))


# ---- gradients of the token that pads


@pytest.mark.parametrize("padding", [END, 5, -1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_embedding_of_the_padding_token_learns(kind, padding):
    """As it does where no token is named for padding: it may be the end of text, whose state is scored."""
    rows = ENCODER.pairs(["w1 w4", "w2"], ["w4 w3", "w30 w4 w4"])
    gradients = []
    for number in (padding, None):
        policy = Policy(network(kind, pad_token_id=number))
        with torch.no_grad():  # drawn anew: transformers begins with zeros for a token of padding
            weights = policy.lm.get_input_embeddings().weight
            weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
        reward_model = RewardModel.from_policy(policy, torch.Generator().manual_seed(1))
        value_function = ValueFunction.from_reward_model(reward_model)
        found = []
        for model in (policy, reward_model, value_function):
            model(rows).sum().backward()
            embedding = (policy.lm if model is policy else model.network).get_input_embeddings()
            assert isinstance(embedding, nn.Embedding)
            assert embedding.weight.grad is not None
            found.append(embedding.weight.grad)
        gradients.append(found)
    for named, unnamed in zip(*gradients, strict=True):
        torch.testing.assert_close(named, unnamed)
    used = [END, 5] if padding != -1 else []
    assert all(float(gradient[token].abs().sum()) > 0 for gradient in gradients[0][1:2] for token in used)


def test_the_tiny_reward_model_is_saved_with_its_end(tmp_path):
    tiny_reward_model(tiny_policy(ENCODER)).save(tmp_path, ENCODER.tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (END, None)
