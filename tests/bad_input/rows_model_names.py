"""What is given as a model and is none: folders that are not there, those of a run."""

import shutil
from pathlib import Path

from table import Row

_MODELS = (
    "model run{}: found a folder of models, accepted is one of them: run/models/reward_model, run/models/sft_epoch_01"
)


def _run() -> None:
    """The folder of a run that has finished two steps."""
    shutil.copytree("model", "run/models/sft_epoch_01")
    shutil.copytree("reward", "run/models/reward_model")
    Path("run/config.yaml").write_text("seed: 1\n", encoding="utf-8")


def _absent(name: str, suggestion: str = "") -> str:
    return f"model {name}: found no such folder{suggestion}, accepted is a transformers folder or name"


RUNS = [
    Row(what="folder of a run", step="sft", options="--model run", make=_run, message=_MODELS.format("")),
    Row(
        what="folder of a run's models",
        step="rm",
        options="--model run/models",
        make=_run,
        message=_MODELS.format("/models"),
    ),
    Row(what="run for a reward model", step="ppo", options="--reward-model run", make=_run, message=_MODELS.format("")),
    Row(what="run to compare", step="eval", options="--models run", make=_run, message=_MODELS.format("")),
    Row(what="run for GPT", step="files", options="--model run", make=_run, message=_MODELS.format("")),
    Row(
        what="run without models",
        step="sft",
        options="--model begun",
        make=lambda: Path("begun/models").mkdir(parents=True),
        message=(
            "model begun: found the folder of a run that has no models yet, accepted is a transformers folder or name"
        ),
    ),
]

ABSENT = [
    Row(what="typo", step="sft", options="--model ./modle", message=_absent("./modle", ", did you mean 'model'")),
    Row(what="path from the root", step="rm", options="--model /nowhere/model", message=_absent("/nowhere/model")),
    Row(what="path from the home", step="ppo", options="--model ~/nowhere", message=_absent("~/nowhere")),
    Row(what="path of three parts", step="ppo", options="--reward-model a/b/c", message=_absent("a/b/c")),
    Row(what="path that ends in a slash", step="eval", options="--models nowhere/", message=_absent("nowhere/")),
    Row(
        what="typo in a folder that is there",
        step="files",
        options="--model out/modles",
        message=_absent("out/modles", ", did you mean 'out/models'"),
    ),
    Row(what="typo of a tokenizer", step="prepare", options="--tokenizer ../x", message=_absent("../x")),
]

ROWS = [*RUNS, *ABSENT]
