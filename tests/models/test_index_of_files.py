"""An index of several files of weights: what is refused when a network is read, whole or in parts."""

import json

import pytest
from safetensors.torch import load_file, save_file
from tiny import tiny_encoder, tiny_policy
from transformers import AutoModelForCausalLM

from instructrl.models.backbone import load_causal_lm
from instructrl.models.folders import INDEX, _read_parts, read_config


@pytest.fixture
def folder(tmp_path):
    tiny_policy(tiny_encoder()).lm.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_a_weight_in_two_files_is_refused_in_parts(folder):
    """Which of them transformers takes is an accident of its order; processes have to agree."""
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    name, weight = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: weight + 1}, second, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name} in {first.name} and in {second.name}"):
        _read_parts(AutoModelForCausalLM, folder, read_config(folder))


def test_an_index_that_names_no_file_is_refused(folder):
    content = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**content, "weight_map": {}}))
    with pytest.raises(ValueError, match=r"found a damaged .* \(it names no file\)"):
        load_causal_lm(folder)
