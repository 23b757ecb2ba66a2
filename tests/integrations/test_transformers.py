"""transformers' losses of language models with ours in their place."""

import importlib.util

import pytest
import torch
import transformers

from benchmarks.end_to_end.host_runs import record
from instructrl.integrations import transformers as adapter

UNTRIED = transformers.__version__ not in adapter.ADAPTER.tried
pytestmark = pytest.mark.skipif(UNTRIED, reason=f"transformers {transformers.__version__} is not one that was tried")
SHAPE = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE)).eval()


def batch():
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.masked_fill(torch.arange(9) > 5, -100)


def losses(model, **others):
    """By the model, and its gradient at the embeddings."""
    tokens, labels = batch()
    loss = model(input_ids=tokens, labels=labels, **others).loss
    return loss, torch.autograd.grad(loss, model.transformer.wte.weight)[0]


@pytest.mark.parametrize("others", [{}, {"num_items_in_batch": torch.tensor(40)}])
def test_a_model_that_is_there_already_finds_ours_in_the_table(others):
    model = gpt2()
    own = losses(model, **others)
    adapter.install(strict=True)
    try:
        assert model.loss_function.__module__ == adapter.__name__
        ours = losses(model, **others)
    finally:
        adapter.uninstall()
    assert model.loss_function.__module__ == "transformers.loss.loss_utils"
    torch.testing.assert_close(ours, own)
    assert not torch.equal(ours[1], torch.zeros_like(ours[1]))


def test_every_name_of_the_loss_is_ours(installed):
    from transformers.loss.loss_utils import LOSS_MAPPING

    ours = {name for name, loss in LOSS_MAPPING.items() if loss.__module__ == adapter.__name__}
    assert ours >= {"ForCausalLM", "ForConditionalGeneration", "ForMaskedLM"}


@pytest.mark.parametrize("number", [None, 40, torch.tensor(40)])
def test_the_function_for_the_trainer_is_the_loss_of_the_model(number):
    model, (tokens, labels) = gpt2(), batch()
    outputs = model(input_ids=tokens)
    expected = model.loss_function(outputs.logits, labels, vocab_size=50, num_items_in_batch=number)
    torch.testing.assert_close(adapter.causal_lm_loss(outputs, labels, num_items_in_batch=number), expected)


def test_where_no_token_counts_the_loss_is_0():
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = adapter.causal_lm_loss({"logits": logits}, torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
@pytest.mark.parametrize("trainer", ["table", "function"])
def test_ten_steps_of_its_trainer_are_the_same(trainer):
    with_adapter, without = (record.run("transformers", trainer, adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
