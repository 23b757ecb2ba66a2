"""Nothing is unpickled: a model folder with a hostile pickle in any place where weights could lie."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import KINDS, edit_json
from model_arguments import POLICY_PLACES, REWARD_PLACES, TOKENIZER_PLACES, arguments

from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.trainers.state_files import STRUCTURE, TENSORS, read_state, write_state

Bomb = Callable[[Path], Path]
SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"


def only_bin(folder: Path, bomb: Bomb) -> None:
    (folder / SAFETENSORS).unlink()
    bomb(folder / "pytorch_model.bin")


def bin_in_shards(folder: Path, bomb: Bomb) -> None:
    (folder / SAFETENSORS).unlink()
    bomb(folder / "pytorch_model-00001-of-00001.bin")
    weights = {"transformer.wte.weight": "pytorch_model-00001-of-00001.bin"}
    edit_json(folder / "pytorch_model.bin.index.json", metadata={}, weight_map=weights)


def called_safetensors(folder: Path, bomb: Bomb) -> None:
    bomb(folder / SAFETENSORS)


def named_by_the_index(folder: Path, bomb: Bomb, shard: str = "x.bin") -> None:
    (folder / SAFETENSORS).unlink()
    bomb(folder / shard)
    edit_json(folder / INDEX, metadata={}, weight_map={"transformer.wte.weight": shard})


def named_by_the_config(folder: Path, bomb: Bomb) -> None:
    """The one name without the ending of safetensors that transformers takes from a configuration."""
    bomb(folder / "adapter_model.bin")
    edit_json(folder / "config.json", transformers_weights="adapter_model.bin")


def named_by_an_index_that_the_config_names(folder: Path, bomb: Bomb) -> None:
    bomb(folder / "x.bin")
    edit_json(folder / "config.json", transformers_weights="other.safetensors.index.json")
    edit_json(folder / "other.safetensors.index.json", metadata={}, weight_map={"transformer.wte.weight": "x.bin"})


TRAPS = [
    only_bin,
    bin_in_shards,
    called_safetensors,
    named_by_the_index,
    named_by_the_config,
    named_by_an_index_that_the_config_names,
]


@pytest.fixture(params=KINDS)
def bomb(request, hostile_file) -> Bomb:
    return lambda path: hostile_file(path, kind=request.param)


READERS = {
    "pickle": "import pickle; pickle.load(open(sys.argv[1], 'rb'))",
    "torch": "import torch; torch.load(sys.argv[1], weights_only=False)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hostile_file_goes_off_where_it_is_unpickled(hostile_file, tmp_path, kind):
    """Otherwise the tests below would prove nothing."""
    marker = hostile_file(tmp_path / "state.bin", kind=kind)
    assert not marker.exists()
    subprocess.run([sys.executable, "-c", f"import sys; {READERS[kind]}", tmp_path / "state.bin"], check=True)
    assert marker.exists()


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize(
    ("load", "name"), [(Policy.load, "policy"), (RewardModel.load, "reward"), (ValueFunction.load, "reward")]
)
def test_a_model_of_pickles_is_refused(good, bomb, marker, trap, load, name):
    trap(good / name, bomb)
    with pytest.raises((ValueError, OSError), match=r"accepted are safetensors: nothing is unpickled$"):
        load(good / name)
    assert not marker.exists()


@pytest.mark.parametrize("trap", [only_bin, named_by_the_index])
@pytest.mark.parametrize("place", [*POLICY_PLACES, *REWARD_PLACES])
def test_the_command_line_refuses_a_model_of_pickles(call, good, hostile_file, marker, tmp_path, trap, place):
    broken = tmp_path / "broken"
    shutil.copytree(good / ("reward" if place in REWARD_PLACES else "policy"), broken)
    trap(broken, hostile_file)
    code, _, err = call(*arguments(place, broken, good))
    assert code == 2
    assert f"model {broken}: found" in err
    assert "accepted are safetensors: nothing is unpickled" in err
    assert "Traceback" not in err
    assert not marker.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.pkl"])
def test_a_tokenizer_of_pickles_is_refused(good, bomb, marker, name):
    if name != "tokenizer_config.json":
        (good / "policy" / "tokenizer.json").unlink()
    bomb(good / "policy" / name)
    with pytest.raises(ValueError, match=r"^tokenizer: found none at .*, accepted is a model folder or name"):
        load_tokenizer(good / "policy")
    assert not marker.exists()


@pytest.mark.parametrize("place", [*TOKENIZER_PLACES, *POLICY_PLACES])
def test_the_command_line_refuses_a_tokenizer_of_pickles(call, good, hostile_file, marker, tmp_path, place):
    broken = tmp_path / "broken"
    shutil.copytree(good / "policy", broken)
    hostile_file(broken / "tokenizer.json")
    code, _, err = call(*arguments(place, broken, good))
    assert code == 2
    assert f"tokenizer: found none at {broken}" in err
    assert not marker.exists()


@pytest.mark.parametrize("load", [Policy.load, load_tokenizer])
def test_pickles_beside_good_files_are_left_alone(good, bomb, marker, load):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "rng_state.pth"):
        bomb(good / "policy" / name)
    load(good / "policy")
    assert not marker.exists()


def test_a_shard_outside_of_the_folder_is_refused(good):
    (good / "policy" / SAFETENSORS).rename(good / "outside.safetensors")
    edit_json(good / "policy" / INDEX, metadata={}, weight_map={"transformer.wte.weight": "../outside.safetensors"})
    with pytest.raises(ValueError, match=r"found the file '\.\./outside\.safetensors' for weights"):
        Policy.load(good / "policy")


def test_shards_of_safetensors_are_read(good, tmp_path):
    """What the refusals above must leave alone."""
    policy = Policy.load(good / "policy")
    policy.lm.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / INDEX).is_file()
    loaded = Policy.load(tmp_path / "shards").state_dict()
    assert all(loaded[name].equal(value) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', "no json"])
def test_a_damaged_index_is_named(good, content):
    (good / "policy" / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"found a damaged {INDEX}"):
        Policy.load(good / "policy")


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons", "prompts", "corpus"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.pkl", "rows.pt"])
def test_data_of_pickles_are_refused(call, hostile_file, marker, tmp_path, name, kind):
    hostile_file(tmp_path / name)
    code, _, err = call("data", "check", kind, tmp_path / name)
    assert code == 2
    assert str(tmp_path / name) in err
    assert not marker.exists()


@pytest.mark.parametrize("name", ["annotations.json", "outputs.json", "results.json", "benchmark.jsonl"])
def test_verdicts_of_pickles_are_refused(call, good, hostile_file, marker, tmp_path, name):
    hostile_file(tmp_path / name)
    option = f"--{name.partition('.')[0]}"
    more = {
        "--outputs": [tmp_path / name, "--reward-model", good / "reward"],
        "--benchmark": ["--reward-model", good / "reward"],
    }
    code, _, err = call("judge", option, tmp_path / name, *more.get(option, []))
    assert code == 2
    assert str(tmp_path / name) in err
    assert not marker.exists()


@pytest.mark.parametrize("name", [TENSORS, STRUCTURE])
def test_a_state_of_pickles_is_refused(tmp_path, bomb, marker, name):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    write_state(folder, {"step": 1, "weight": torch.zeros(2)})
    assert read_state(folder)["step"] == 1
    bomb(folder / name)
    with pytest.raises(ValueError, match=r"step-00000001: found no state"):
        read_state(folder)
    assert not marker.exists()
