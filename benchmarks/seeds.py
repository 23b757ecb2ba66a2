"""Several runs of an experiment as a markdown table: `python benchmarks/seeds.py runs/miniature-0 runs/miniature-1`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def table(folders: Sequence[Path]) -> str:
    """Win rates with 95% intervals, Likert, corpus loss, reward-model accuracy and tax, one column a run."""
    runs = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    rows = [["", *(f"seed {run['run']['seed']}" for run in runs)]]
    for name in [model["name"] for model in runs[0]["models"]]:
        models = [next(model for model in run["models"] if model["name"] == name) for run in runs]
        if name == runs[0]["run"]["baseline"]:
            rows.append([f"{name}, the baseline", *("50%" for _ in models)])
        else:
            rows.append([f"{name}: win rate", *(_interval(model["win_rate"]) for model in models)])
    for name in [model["name"] for model in runs[0]["models"]]:
        models = [next(model for model in run["models"] if model["name"] == name) for run in runs]
        cells = [f"{m['likert']['mean']:.2f} / {m['corpus_loss']:.3f} / {m['fact_accuracy']:.0%}" for m in models]
        rows.append([f"{name}: Likert / corpus loss / facts", *cells])
    quality = [run["reward_model"] for run in runs]
    for key, label in (
        ("accuracy_heldout_labelers", "reward model's accuracy on held-out labelers"),
        ("accuracy_training_labelers", "the same on training labelers"),
        ("agreement_heldout_labelers", "held-out labelers' agreement"),
        ("agreement_training_labelers", "training labelers' agreement"),
    ):
        rows.append([label, *(_interval(entry[key]) for entry in quality)])
    taxes = [run["alignment_tax"] for run in runs]
    for name in taxes[0]["tax"]:
        rows.append([f"alignment tax of {name}, nats a token", *(f"{tax['tax'][name]:+.3f}" for tax in taxes)])
    rows.append(["recovered by the mix", *(f"{tax['recovered']:.0%}" if tax["recovered"] else "-" for tax in taxes)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _interval(entry: dict) -> str:
    margin = (entry["high"] - entry["low"]) / 2
    return f"{100 * entry['rate']:.1f} ± {100 * margin:.1f}%"


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
