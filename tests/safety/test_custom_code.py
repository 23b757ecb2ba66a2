"""Code that comes with a model or a data set is not run, and nobody is asked whether it should be."""

import shutil

import pytest
import torch
from hostile import write_custom_code
from model_arguments import POLICY_PLACES, REWARD_PLACES, TOKENIZER_PLACES, arguments
from transformers import AutoModelForCausalLM, CodeGenConfig

from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.backbone import load_causal_lm, load_scalar_model
from instructrl.models.policy import Policy

BOTH = ("config.json", "tokenizer_config.json")


@pytest.fixture
def folder(good, tmp_path):
    """(policy or reward) -> a copy of that model's folder."""
    return lambda name: shutil.copytree(good / name, tmp_path / "custom")


@pytest.mark.parametrize("name", ["policy", "reward"])
def test_the_custom_code_runs_where_it_is_trusted(folder, name, marker):
    """Otherwise the tests below would prove nothing. The class is not one, so that loading fails after the import."""
    path = folder(name)
    write_custom_code(path, marker, model_type="evil", places=BOTH)
    with pytest.raises((AttributeError, ValueError), match="Evil"):
        load_causal_lm(path, trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize("places", [("config.json",), BOTH])
@pytest.mark.parametrize("place", [*POLICY_PLACES, *REWARD_PLACES])
def test_no_command_runs_the_code_of_a_model(call, good, folder, marker, place, places):
    path = folder("reward" if place in REWARD_PLACES else "policy")
    write_custom_code(path, marker, model_type="evil", places=places)
    code, out, err = call(*arguments(place, path, good))
    assert code == 2
    assert "[y/N]" not in out + err
    assert str(path) in err
    assert "is not run" in err
    assert "Traceback" not in err
    assert not marker.exists()


@pytest.mark.parametrize("places", [("config.json",), ("tokenizer_config.json",), BOTH])
@pytest.mark.parametrize("place", TOKENIZER_PLACES)
def test_no_command_runs_the_code_of_a_tokenizer(call, good, folder, marker, place, places):
    """Where the configuration or the files suffice, transformers' own tokenizer is taken, which is as good."""
    path = folder("policy")
    write_custom_code(path, marker, model_type="evil", places=places)
    code, out, err = call(*arguments(place, path, good))
    assert code == (2 if places == BOTH or place == "run public --model" else 0)
    assert "[y/N]" not in out + err
    assert "Traceback" not in err
    assert not marker.exists()


@pytest.mark.parametrize("load", [Policy.load, load_causal_lm, load_tokenizer])
def test_a_known_architecture_is_loaded_by_transformers_own_code(folder, marker, load):
    path = folder("policy")
    write_custom_code(path, marker, model_type=None, places=BOTH)
    load(path)
    assert not marker.exists()


def test_a_reward_model_of_a_known_architecture_is_loaded_by_transformers_own_code(folder, marker):
    path = folder("reward")
    write_custom_code(path, marker, model_type=None, places=BOTH)
    load_scalar_model(path)
    assert not marker.exists()


def test_a_scalar_head_is_never_of_the_models_own_code(call, good, marker, tmp_path):
    """CodeGen has no sequence classification in transformers, which would take it from the folder: it is made here."""
    path = tmp_path / "custom"
    config = CodeGenConfig(
        vocab_size=32,
        n_positions=32,
        n_ctx=32,
        n_embd=32,
        n_layer=1,
        n_head=4,
        rotary_dim=4,
        bos_token_id=31,
        eos_token_id=31,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    load_tokenizer(good / "policy").save_pretrained(path)
    write_custom_code(path, marker, model_type=None, places=("config.json",))
    Policy.load(path)
    code, out, err = call(*arguments("rm --model", path, good))
    assert code == 0
    assert "[y/N]" not in out + err
    assert "Traceback" not in err
    assert not marker.exists()


def test_the_script_of_a_data_set_is_not_run(call, marker, tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    code, out, err = call("data", "check", "prompts", f"hub:{folder}")
    assert code == 2
    assert "[y/N]" not in out + err
    assert not marker.exists()
