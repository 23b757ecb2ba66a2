"""What every process of a job does in test_parts.py: networks read in parts beside the same read whole.

    torchrun --nproc-per-node 2 parts_worker.py FOLDER

Each folder in FOLDER is a model. The main process leaves what it found, in `found.json`.
"""

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from instructrl import distributed
from instructrl.models import parts
from instructrl.models.backbone import load_causal_lm
from instructrl.models.base import another
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import PassConfig
from instructrl.models.spread import exact, in_turn, spread, unsharded
from instructrl.trainers.checkpoints import fingerprint
from instructrl.types import Sequences


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def check(folder: Path) -> dict[str, Any]:
    """Raises AssertionError where parts are not the network that transformers reads."""
    read, real = [], parts.read_parts

    def noted(*given: Any) -> Any:
        read.append(real(*given))
        return read[-1]

    parts_of_folders = sys.modules["instructrl.models.folders"]
    parts_of_folders.read_parts = noted
    lm, expected = load_causal_lm(folder, in_parts=True), load_causal_lm(folder)
    parts_of_folders.read_parts = real
    own, there = dict(lm.named_parameters()), dict(expected.named_parameters())
    assert own.keys() == there.keys()
    for name, x in there.items():
        assert torch.equal(whole(own[name].detach()), x), name
        assert own[name].requires_grad == x.requires_grad
        if x.dim():
            assert isinstance(own[name], DTensor), name
            assert len(own[name].to_local()) <= -(-len(x) // distributed.size_of_job())
    for (name, x), (other, y) in zip(lm.named_buffers(), expected.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(x, y), name
        assert x.dtype == y.dtype
    assert lm.generation_config.to_dict() == expected.generation_config.to_dict()
    assert lm.config.name_or_path == expected.config.name_or_path == str(folder)
    ties = [
        [{id(p) for p in (a.weight, b.weight)} for a, b in [(m.get_input_embeddings(), m.get_output_embeddings())]]
        for m in (lm, expected)
    ]
    assert len(ties[0][0]) == len(ties[1][0]), "tied embeddings"
    # A copy: what lies in a file is aligned as it is there, and products round by that.
    one, other = Policy(lm), Policy(copy.deepcopy(expected))
    assert fingerprint(one) == fingerprint(other)
    copied = another(one)
    assert all(a is not b for a, b in zip(copied.parameters(), one.parameters(), strict=True))
    assert fingerprint(copied) == fingerprint(one)
    tokens = Sequences.smallest()
    with torch.no_grad():
        truth = other(tokens)
        for way in (unsharded, in_turn, exact):
            with way(one) as found:
                assert torch.equal(found(tokens), truth), f"{folder.name}, {way.__name__}: {found(tokens) - truth}"
        scored = [RewardModel.from_policy(x, torch.Generator().manual_seed(0)) for x in (one, other)]
        with unsharded(scored[0]) as found:
            assert torch.equal(found(tokens), scored[1](tokens))
    spread(copied, PassConfig(spread="ddp", weights="float32"))
    assert not parts.is_in_parts(copied), "a step that has copies joins the parts"
    again = another(one)
    spread(again, PassConfig(spread="fsdp", weights="bfloat16"))
    assert all(x.dtype == torch.bfloat16 for x in again.parameters() if x.dim() > 1)
    return {"read in parts": read[0] is not None}


def main(place: Path) -> None:
    warnings.simplefilter("ignore")
    found = {}
    for folder in sorted(x for x in place.iterdir() if x.is_dir()):
        found[folder.name] = check(folder)
    if distributed.is_main():
        (place / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with distributed.joined():
        main(Path(sys.argv[1]))
