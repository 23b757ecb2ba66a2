"""The figures of a run on a chat model, without a word of its data: `benchmarks/results/chat.json` and `chat.md`.

python -m benchmarks.end_to_end.chat_summary runs/chat --out benchmarks/results/chat
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
# What of a run's results holds no text of data or models.
_KEPT = ("run", "models", "head_to_head", "reward_model", "alignment_tax", "over_optimisation", "config", "versions")


def summary(folder: Path) -> dict[str, Any]:
    """The figures of a finished run, with the time and the memory of its phases."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    profile = [json.loads(line) for line in (folder / "profile.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = {key: results[key] for key in _KEPT}
    kept["data"] = results["data"]["sizes"]
    kept["config"]["data"] = Path(kept["config"]["data"]).name  # and not where it lies
    kept["seconds"] = {row["phase"]: 0.0 for row in profile}
    for row in profile:
        kept["seconds"][row["phase"]] += row["seconds"]
    kept["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in profile)
    return kept


def markdown(found: Record) -> str:
    """The figures as tables."""
    minutes = sum(found["seconds"].values()) / 60
    lines = [
        f"{minutes:.0f} minutes ({', '.join(f'{name} {s / 60:.1f}' for name, s in found['seconds'].items())}), at most "
        f"{found['peak_memory_bytes'] / 2**30:.1f} GiB of memory.",
        "",
        "| model | judge prefers it to SFT | judge's score | reward | KL, nats | tokens | ended | loss on plain text |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["models"]:
        win = "" if row["name"] == found["run"]["baseline"] else _percent(row["win_rate"])
        lines.append(
            f"| {row['name']} | {win} | {_number(row['judge_score'])} | {row['score']:.2f} | {row['kl']:.2f} | "
            f"{row['response_tokens']:.1f} | {row['finished']:.0%} | {row['corpus_loss']:.3f} |"
        )
    lines += ["", "| model | comparisons | agrees with people | score and length | longer: model | longer: people |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in found["reward_model"]["held_out"]:
        cells = [_percent(row["accuracy"]), _number(row["length_correlation"])]
        cells += [_percent(row[key]) for key in ("prefers_longer", "people_prefer_longer")]
        lines.append(f"| {row['model']} | {row['data']} | {' | '.join(cells)} |")
    if people := found["reward_model"].get("annotators"):
        lines.append(f"| two annotators | pandalm | {_percent(people)} | | | |")
    lines += ["", "| iteration | KL, nats | reward | judge's score |", "| ---: | ---: | ---: | ---: |"]
    for row in found["over_optimisation"]:
        lines.append(f"| {row['iteration'] + 1} | {row['kl']:.2f} | {_error(row, 'score')} | {_error(row, 'gold')} |")
    return "\n".join(lines) + "\n"


def _percent(rate: Record | None) -> str:
    return "" if rate is None else f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _number(mean: Record | None) -> str:
    return "" if mean is None else f"{mean['mean']:.2f} ({mean['low']:.2f} to {mean['high']:.2f})"


def _error(row: Record, key: str) -> str:
    return f"{row[key]:.2f} ± {row[f'{key}_error']:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = summary(arguments.folder)
    arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(figures), encoding="utf-8")
