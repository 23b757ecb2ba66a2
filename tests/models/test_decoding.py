"""The cache of a batch from which rows leave, on architectures with and without shared key-value heads."""

import pytest
import torch
from models.architectures import make_lm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from instructrl.models.decoding import Decoder
from instructrl.models.policy import Policy

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
GPT2 = dict(vocab_size=50, n_positions=256, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
NETWORKS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    # Their states of convolutions leave with their rows.
    "convolutions": lambda: make_lm("lfm2"),
    # A window shorter than what is read: its layers keep a cache of their own kind.
    "sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=20)),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_are_those_of_reading_everything_again(name):
    torch.manual_seed(0)
    policy = Policy(NETWORKS[name]().double().eval())
    lengths = torch.tensor([3, 9, 1, 6, 9])
    prompt = torch.randint(0, 50, (5, 9))
    mask = torch.arange(9) >= 9 - lengths[:, None]
    texts = [row[keep].tolist() for row, keep in zip(prompt, mask, strict=True)]
    decoder = Decoder(policy, prompt, mask)
    # More tokens than the cache has room for at first, and rows that leave from the front, the middle and the end.
    leaving = {4: [0, 3], 70: [1], 90: [0]}
    for step in range(100):
        expected = torch.stack([policy.lm(torch.tensor([text])).logits[0, -1] for text in texts])
        torch.testing.assert_close(decoder.projection(), expected, rtol=1e-9, atol=1e-9)
        if step in leaving:
            gone = torch.zeros(len(texts), dtype=torch.bool)
            gone[leaving[step]] = True
            texts = [texts[place] for place in decoder.drop(gone).tolist()]
        tokens = torch.randint(0, 50, (len(texts),))
        decoder.append(tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)


def test_dropped_rows_leave_the_others_where_they_can_stay():
    policy = Policy(NETWORKS["gpt2"]().eval())
    with torch.no_grad():
        decoder = Decoder(policy, torch.zeros(6, 2, dtype=torch.int64), torch.ones(6, 2, dtype=torch.bool))
        order = decoder.drop(torch.tensor([False, True, False, True, False, False]))
    assert order.tolist() == [0, 4, 2, 5]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_tokens_that_all_prompts_begin_with_are_read_once(name):
    torch.manual_seed(0)
    policy = Policy(NETWORKS[name]().double().eval())
    common = torch.randint(0, 50, (40,)).tolist()
    texts = [[*common, *torch.randint(0, 50, (length,)).tolist()] for length in (7, 1, 3)]
    width = max(map(len, texts))
    prompt = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[False] * (width - len(text)) + [True] * len(text) for text in texts])
    read = []
    with policy.lm.base_model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    ):
        decoder = Decoder(policy, prompt, mask)
    # A window and a convolution count padding between two tokens.
    assert read == ([3 * width] if name in ("sliding", "convolutions") else [40, 3 * 7])
    for step in range(70):
        expected = torch.stack([policy.lm(torch.tensor([text])).logits[0, -1] for text in texts])
        torch.testing.assert_close(decoder.projection(), expected, rtol=1e-9, atol=1e-9)
        if step == 20:
            texts = [texts[place] for place in decoder.drop(torch.tensor([False, True, False])).tolist()]
        tokens = torch.randint(0, 50, (len(texts),))
        decoder.append(tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)


@torch.no_grad()
def test_the_same_prompts_keep_a_token_of_their_own():
    """Of which the state is asked for; and a single prompt has nothing in common."""
    torch.manual_seed(0)
    policy = Policy(NETWORKS["llama"]().double().eval())
    text = torch.randint(0, 50, (41,))
    expected = policy.lm(text[None]).logits[0, -1]
    for rows in (1, 3):
        prompt = text.repeat(rows, 1)
        found = Decoder(policy, prompt, torch.ones_like(prompt, dtype=torch.bool)).projection()
        torch.testing.assert_close(found, expected.repeat(rows, 1), rtol=1e-9, atol=1e-9)
