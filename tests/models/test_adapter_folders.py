"""Folders of adapters: what is written is peft's, what peft writes is read, and nothing is put on another base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import make_lm
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import demonstrations, lively_policy, tiny_encoder, tiny_reward_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from instructrl import cli
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.base import named_weights
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, load_policy, on_shared_base
from instructrl.models.scalar_heads import register_scalar_class
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig
from instructrl.trainers.checkpoints import fingerprint
from instructrl.types import Sequences

ADAPTER = AdapterConfig(rank=2, alpha=3)
ENCODER = tiny_encoder()
FAMILIES = ("gpt2", "gemma2")


def rows() -> Sequences:
    return ENCODER.demonstrations(demonstrations(5))


def stir(role: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def on_base(folder: Path, family: str = "gpt2") -> Policy:
    """A policy with an adapter on the base that is saved in `folder`."""
    Policy(make_lm(family), len(ENCODER.tokenizer)).save(folder, ENCODER.tokenizer)
    policy = load_policy(folder, ENCODER.tokenizer, ADAPTER)
    made = learner(policy, ADAPTER, 0)
    stir(made)
    return made


def tokens() -> torch.Tensor:
    return torch.tensor([[1, 5, 9, 2, 7]])


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_a_policy_with_equal_logits(tmp_path, family):
    policy = on_base(tmp_path / "base", family)
    policy.save(tmp_path / "adapter", ENCODER.tokenizer)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=tokens()).logits, policy.lm(input_ids=tokens()).logits)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (2, 3, "CAUSAL_LM")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_a_reward_model_with_equal_scores(tmp_path, family):
    reward_model = tiny_reward_model(on_base(tmp_path / "base", family))
    stir(reward_model)
    reward_model.bias += 0.5
    reward_model.save(tmp_path / "adapter", ENCODER.tokenizer)
    register_scalar_class(tmp_path / "base")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    theirs = PeftModel.from_pretrained(network, tmp_path / "adapter").eval()
    sequences = ENCODER.demonstrations(demonstrations(1))
    with torch.no_grad():
        ids = torch.cat([sequences.prompt, sequences.response], dim=1)
        score = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        torch.testing.assert_close(score, reward_model(sequences)[0] - 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_is_loaded_on_the_base_in_memory(tmp_path, family):
    policy = on_base(tmp_path / "base", family)
    reward_model = tiny_reward_model(policy)
    stir(reward_model)
    reward_model.bias -= 0.25
    for role in (policy, reward_model):
        role.save(tmp_path / type(role).__name__, ENCODER.tokenizer)
    for role in (policy, reward_model):
        folder = tmp_path / type(role).__name__
        found = Policy.load(folder, ENCODER.tokenizer) if isinstance(role, Policy) else RewardModel.load(folder)
        assert found.base is role.base
        assert torch.equal(found(rows()), role(rows()))
        assert all(parameter.requires_grad for parameter in found.parameters())


def test_without_a_base_in_memory_it_is_loaded_once(tmp_path):
    policy = on_base(tmp_path / "base")
    reward_model = tiny_reward_model(policy)
    outcomes = policy(rows()), reward_model(rows())
    for role in (policy, reward_model):
        role.save(tmp_path / type(role).__name__, ENCODER.tokenizer)
    del policy, reward_model, role
    found = RewardModel.load(tmp_path / "RewardModel"), Policy.load(tmp_path / "Policy", ENCODER.tokenizer)
    assert found[0].base is found[1].base
    assert torch.equal(found[1](rows()), outcomes[0])
    assert torch.equal(found[0](rows()), outcomes[1])


def peft_folder(tmp_path: Path, family: str = "gpt2", **settings) -> torch.Tensor:
    """A base and an adapter as peft alone writes them, into folders of these names. Returns the logits."""
    Policy(make_lm(family), len(ENCODER.tokenizer)).save(tmp_path / "base", ENCODER.tokenizer)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(lm, LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", "lora_dropout": 0.3, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        logits = model(input_ids=tokens()).logits
    model.save_pretrained(tmp_path / "adapter")
    return logits


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gemma2", {"target_modules": r".*layers\.1.*_proj", "lora_alpha": 5, "use_rslora": True}),
        (
            "gemma2",
            {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
        ),
    ],
)
def test_an_adapter_of_pefts_own_is_read_and_trained_further(tmp_path, family, settings):
    logits = peft_folder(tmp_path, family, **settings)
    policy = load_policy(tmp_path / "adapter", load_tokenizer(tmp_path / "adapter"), AdapterConfig())
    torch.testing.assert_close(policy.lm(input_ids=tokens()).logits, logits)
    again = learner(policy, AdapterConfig(), 0)
    again(rows()).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in again.parameters())
    again.save(tmp_path / "further", ENCODER.tokenizer)
    torch.testing.assert_close(Policy.load(tmp_path / "further").lm(input_ids=tokens()).logits, logits)


def test_an_adapter_beside_its_base_stands_on_that(tmp_path):
    logits = peft_folder(tmp_path, target_modules=["c_attn"])
    for file in (tmp_path / "adapter").iterdir():
        file.rename(tmp_path / "base" / file.name)
    policy = Policy.load(tmp_path / "base", ENCODER.tokenizer)
    torch.testing.assert_close(policy.lm(input_ids=tokens()).logits, logits)
    assert policy.lm.config.name_or_path == str(tmp_path / "base")


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    policy = on_base(tmp_path / "base")
    policy.save(tmp_path / "adapter", ENCODER.tokenizer)
    lively_policy(ENCODER, seed=3).save(tmp_path / "other", ENCODER.tokenizer)
    change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"found an adapter for other weights than those in .*other; accepted is"):
        Policy.load(tmp_path / "adapter")


@pytest.mark.parametrize("other", ["head", "configuration"])
def test_models_that_differ_above_their_trunk_alone_are_told_apart(tmp_path, other):
    lm = make_lm("gemma2", tie_word_embeddings=False)
    Policy(lm, len(ENCODER.tokenizer)).save(tmp_path / "one", ENCODER.tokenizer)
    with torch.no_grad():
        lm.lm_head.weight.mul_(0.5)
    if other == "configuration":
        shutil.copytree(tmp_path / "one", tmp_path / "other")
        change(tmp_path / "other" / "config.json", final_logit_softcapping=1.0)
    else:
        Policy(lm, len(ENCODER.tokenizer)).save(tmp_path / "other", ENCODER.tokenizer)
    found = []
    for name in ("one", "other"):
        policy = learner(load_policy(tmp_path / name, ENCODER.tokenizer, ADAPTER), ADAPTER, 0)
        stir(policy)
        policy.save(tmp_path / f"adapter of {name}", ENCODER.tokenizer)
        again = Policy.load(tmp_path / f"adapter of {name}", ENCODER.tokenizer)
        assert torch.equal(again(rows()), policy(rows()))
        assert again.lm.config.name_or_path == str(tmp_path / name)
        found.append(again)
    assert found[0].base is found[1].base
    assert not torch.allclose(found[0](rows()), found[1](rows()))
    heads = [role.output_embedding()[0].data_ptr() for role in (*found, *map(learner, found))]
    assert heads[:2] == heads[2:]
    assert len(set(heads)) == (2 if other == "head" else 1)
    assert len({fingerprint(role) for role in found}) == (2 if other == "head" else 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda weights: weights | {"base_model.model.x.lora_A.weight": torch.ones(2, 2)},
            "x.lora_A.weight has no place",
        ),
        (lambda weights: {name: x[:1] for name, x in weights.items()}, r"is \[1, .*\] and not \["),
        (lambda weights: dict(list(weights.items())[1:]), "is missing"),
    ],
)
def test_weights_that_are_not_the_adapters_are_refused(tmp_path, spoil, message):
    on_base(tmp_path / "base").save(tmp_path / "adapter", ENCODER.tokenizer)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: x.contiguous() for name, x in spoil(load_file(file)).items()}, file)
    with pytest.raises(ValueError, match=f"found an adapter for another base .*{message}"):
        Policy.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(lambda x: x.int(), "int32"), (lambda x: x.to(torch.complex64), "complex64"), (lambda x: x / 0, "numbers that")],
    ids=["integers", "complex", "not finite"],
)
def test_weights_that_no_adapter_learns_are_refused(tmp_path, spoil, kind):
    on_base(tmp_path / "base").save(tmp_path / "adapter", ENCODER.tokenizer)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    first, *rest = load_file(file).items()
    save_file({**dict(rest), first[0]: spoil(first[1])}, file)
    with pytest.raises(ValueError, match=rf"{first[0]}: found {kind}.*, accepted are finite floating-point numbers"):
        Policy.load(tmp_path / "adapter")


def test_a_policy_is_no_reward_model_and_the_reverse(tmp_path):
    policy = on_base(tmp_path / "base")
    policy.save(tmp_path / "policy", ENCODER.tokenizer)
    tiny_reward_model(policy).save(tmp_path / "reward", ENCODER.tokenizer)
    with pytest.raises(ValueError, match="found an adapter of a language model, accepted is one of a reward model"):
        RewardModel.load(tmp_path / "policy")
    with pytest.raises(ValueError, match="found an adapter of a reward model, accepted is one of a language model"):
        Policy.load(tmp_path / "reward")


@pytest.mark.parametrize(
    ("asked", "name"), [(AdapterConfig(rank=3), "rank"), (AdapterConfig(rank=2, alpha=9), "alpha")]
)
def test_an_adapter_of_another_size_than_asked_for_is_refused(tmp_path, asked, name):
    on_base(tmp_path / "base").save(tmp_path / "adapter", ENCODER.tokenizer)
    with pytest.raises(ValueError, match=rf"adapter.{name}: found \d, accepted is the \d of the adapter in .*merge"):
        load_policy(tmp_path / "adapter", ENCODER.tokenizer, asked)


def test_a_role_on_a_bare_base_is_saved_whole(tmp_path):
    policy = lively_policy(ENCODER)
    expected = policy(rows())
    on_shared_base(policy, ADAPTER)
    policy.save(tmp_path, ENCODER.tokenizer)
    found = Policy.load(tmp_path, ENCODER.tokenizer)
    assert torch.equal(found(rows()), expected)
    assert found.base is None
    assert {name for name, _ in found.named_parameters()} == {name for name, _ in named_weights(policy)}


@pytest.mark.parametrize(("dtype", "trained_on"), [(None, "float32"), (None, "bfloat16"), ("float32", "bfloat16")])
def test_merge_makes_whole_weights(tmp_path, capsys, dtype, trained_on):
    on_base(tmp_path / "base")
    adapter = AdapterConfig(rank=2, base_dtype=trained_on)
    policy = learner(load_policy(tmp_path / "base", ENCODER.tokenizer, adapter), adapter, 0)
    stir(policy)
    reward_model = tiny_reward_model(policy)
    reward_model.bias += 0.5
    for role in (policy, reward_model):
        role.save(tmp_path / "adapter" / type(role).__name__, ENCODER.tokenizer)
        out = tmp_path / "merged" / type(role).__name__
        words = ["merge", "--model", str(tmp_path / "adapter" / type(role).__name__), "--out", str(out)]
        out.parent.mkdir(exist_ok=True)
        assert cli.main(words if dtype is None else [*words, "--dtype", dtype]) == 0
        written = dtype or trained_on
        said = capsys.readouterr().out
        assert f"{out}: {written}, the adapter changes" in said
        assert ("rounding them by" in said) == (written == "bfloat16")
        found = Policy.load(out, ENCODER.tokenizer) if isinstance(role, Policy) else RewardModel.load(out)
        assert found.base is None
        loose = 0.5 if "bfloat16" in (written, trained_on) else 1e-5
        torch.testing.assert_close(found(rows()), role(rows()), rtol=0.05 if loose > 0.1 else 1e-4, atol=loose)
        weights = load_file(out / "model.safetensors")
        kinds = {name: str(x.dtype).removeprefix("torch.") for name, x in weights.items()}
        assert {kind for name, kind in kinds.items() if name != "score.weight"} == {written}
