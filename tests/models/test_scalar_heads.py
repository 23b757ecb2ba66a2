"""Every language model can have a scalar head, which reads the states that the language model has."""

import copy

import pytest
import torch
from architectures import make_lm
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from instructrl.models import scalar_heads
from instructrl.models.backbone import load_causal_lm, load_scalar_model

# Without a class of their own, with one that has another head, with one that fits, and with a base under another name.
FAMILIES = {
    **{family: {} for family in ("granite", "olmoe", "codegen", "xglm", "lfm2", "ctrl", "gpt2", "opt", "llama4_text")},
    "cohere2": {"logit_scale": 1.0},
}
TOKENS = torch.arange(10, 30)[None]


@pytest.fixture(autouse=True)
def nothing_known_before(monkeypatch):
    monkeypatch.setattr(scalar_heads, "_CLASSES", {})
    monkeypatch.setattr(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, "_extra_content", {})


def with_head(lm: PreTrainedModel) -> PreTrainedModel:
    return scalar_heads.scalar_model(lm, torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_of_the_states_and_survive_saving(family, tmp_path, monkeypatch):
    lm = make_lm(family, **FAMILIES[family])
    before = copy.deepcopy(lm.config.to_dict())
    network = with_head(lm)
    states = network.base_model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(states, lm.base_model(input_ids=TOKENS).last_hidden_state)
    assert lm.config.to_dict() == before
    network.save_pretrained(tmp_path)
    monkeypatch.setattr(scalar_heads, "_CLASSES", {})
    loaded = load_scalar_model(tmp_path).eval()
    scores = network.score(states)
    torch.testing.assert_close(loaded.score(loaded.base_model(input_ids=TOKENS).last_hidden_state), scores)
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, scores[:, -1])


@torch.no_grad()
@pytest.mark.parametrize("family", ["olmoe", "granite"])
def test_a_network_that_was_loaded_can_have_one(family, tmp_path):
    """Its configuration says how experts are run, which one that was made does not."""
    make_lm(family).save_pretrained(tmp_path)
    lm = load_causal_lm(tmp_path)
    network = with_head(lm)
    states = lm.base_model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(network.base_model(input_ids=TOKENS).last_hidden_state, states)


def test_transformers_own_class_is_taken_where_it_fits():
    assert type(with_head(make_lm("gpt2"))) is GPT2ForSequenceClassification


@torch.no_grad()
def test_transformers_loads_it_after_it_was_registered(tmp_path):
    network = with_head(make_lm("granite"))
    network.save_pretrained(tmp_path)
    scalar_heads._CLASSES.clear()
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._extra_content.clear()
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    scalar_heads.register_scalar_class(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(input_ids=TOKENS).logits, network(input_ids=TOKENS).logits)


def test_transformers_keeps_its_own_class_where_it_has_one():
    network = with_head(make_lm("ctrl"))
    own = type(AutoModelForSequenceClassification.from_config(make_lm("ctrl").config))
    assert own is not type(network)
    assert own.__module__.startswith("transformers.")


def test_a_network_without_a_base_is_refused_by_name():
    lm = make_lm("gpt2")
    lm.base_model_prefix = "nothing"
    lm.config.name_or_path = "models/strange"
    with pytest.raises(
        ValueError, match=r"^model models/strange: found GPT2LMHeadModel, which cannot have a scalar head"
    ):
        with_head(lm)
