"""Runs of the miniature beside the paper: docs/results.md, and the few of its numbers that README.md shows.

    python -m benchmarks.end_to_end.seeds runs/miniature-0 [runs/miniature-1 ...]
    python -m benchmarks.end_to_end.seeds runs/miniature-0 [...] --write .

The first prints what docs/results.md shows: the table of claims, then all numbers. The second writes into a checkout,
here the current folder: the text between the markers of both pages, and the plot of the first run.
Every number and every comparison comes from the results; a sentence that they do not support is not written.
"""

import datetime
import json
import os
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.core.tables import command, markdown
from instructrl.evaluation.claims import RULE, claim_rows
from instructrl.evaluation.report import write_figure

FIGURE = Path("benchmarks/results/miniature_win_rates.svg")
# What the paper's text states; what is read off a figure, to the nearest two hundredths or so, has a "≈".
PAPER = {
    "PPO-ptx: win rate": "73.4 ± 2%",
    "PPO-ptx preferred to GPT": "85 ± 3%",
    "PPO-ptx preferred to GPT (prompted)": "71 ± 4%",
    "reward model's accuracy on training labelers": "72.4 ± 0.4%",
    "the same on held-out labelers": "69.6 ± 0.9%",
    "training labelers' agreement": "72.6 ± 1.5%",
    "held-out labelers' agreement": "77.3 ± 1.3%",
    "GPT: hallucination": "41%",
    "PPO-ptx: hallucination": "21%",
    "GPT: satisfies constraint": "≈ 20%",
    "GPT (prompted): satisfies constraint": "≈ 28%",
    "SFT: satisfies constraint": "≈ 35%",
    "PPO: satisfies constraint": "≈ 45%",
    "PPO-ptx: satisfies constraint": "≈ 48%",
    "GPT (prompted): hallucination": "≈ 30%",
    "SFT: hallucination": "≈ 8%",
    "PPO: hallucination": "≈ 20%",
}

# What README.md shows of it.
FEW = (
    "PPO: win rate",
    "PPO-ptx: win rate",
    "PPO-ptx preferred to GPT",
    "PPO-ptx preferred to GPT (prompted)",
    "SFT: hallucination",
    "PPO-ptx: hallucination",
    "reward model's accuracy on training labelers",
    "the same on held-out labelers",
    "alignment tax of PPO, nats a token",
    "alignment tax of PPO-ptx, nats a token",
)

Run = Mapping[str, Any]


def section(runs: Sequence[Run], folders: Sequence[Path], made: str) -> str:
    """What stands between the markers. made: when and on what the runs were made."""
    seeds = "One seed" if len(runs) == 1 else f"{len(runs)} seeds"
    prompts = runs[0]["models"][0]["win_rate"]["num_prompts"]
    asked = [run["data"]["overlap"][-1] for run in runs]
    known = " / ".join(f"{row['count'] / row['total']:.0%}" for row in asked)
    lead = (
        f"{seeds}, {prompts:,} prompts of test users, 95% intervals. {_seen(runs)}; {known} of them ask "
        f"for a task that a training prompt asks for too, in the same or other words. {_rule(runs)}"
    )
    numbers = (
        "All numbers. The last column has the paper's number where it gives one: win rates are those of its 175B "
        "models, and “≈” is read off its figure 4, which covers all sizes. There, people judge answers to what people "
        "asked; here, simulated people judge answers in a generated world. The columns compare the same quantities, "
        "not the same difficulty."
    )
    sentences = [_wrapped(text) for text in _sentences(runs)]
    ends = [*sentences, _wrapped(made + _command(runs, folders))]
    return "\n\n".join([_wrapped(lead), claims(runs), _wrapped(numbers), table(runs), *ends])


def claims(runs: Sequence[Run]) -> str:
    """What the paper claims, what each run measured of it, and the verdict."""
    rows = [[row.claim, row.paper, row.measured, row.verdict] for row in claim_rows(runs)]
    seeds = " / ".join(str(run["run"]["seed"]) for run in runs)
    heads = ["claim", "in the paper", f"measured, {'seed' if len(runs) == 1 else 'seeds'} {seeds}", "verdict"]
    return markdown(heads, rows).rstrip("\n")


def _rule(runs: Sequence[Run]) -> str:
    """How the table of claims is to be read."""
    return RULE if len(runs) == 1 else f"{RULE} All seeds have to agree."


def table(runs: Sequence[Run], labels: Sequence[str] | None = None) -> str:
    """One row a quantity, one column a run, and the paper's number last. labels: which rows; None for all."""
    names, tax = [model["name"] for model in runs[0]["models"]], runs[0]["alignment_tax"]["tax"]
    asked = [name for name in runs[0]["head_to_head"]["against"] if name in ("GPT", "GPT (prompted)")]
    columns = [dict(_quantities(run, names, asked, list(tax))) for run in runs]
    shown = [label for label in columns[0] if labels is None or label in labels]
    rows = [[label, *(column[label] for column in columns), PAPER.get(label, "")] for label in shown]
    heads = ["", *(f"seed {run['run']['seed']}" for run in runs), "paper"]
    return markdown(heads, rows).rstrip("\n")


def _quantities(run: Run, names: list[str], asked: list[str], taxed: list[str]) -> list[tuple[str, str]]:
    """Of one run, by label. names: of models. asked: those that are compared one with another."""
    models, quality, tax = {model["name"]: model for model in run["models"]}, run["reward_model"], run["alignment_tax"]
    baseline, head = run["run"]["baseline"], run["head_to_head"]
    agreements = {
        "reward model's accuracy on training labelers": quality["accuracy_training_labelers"],
        "the same on held-out labelers": quality["accuracy_heldout_labelers"],
        "training labelers' agreement": quality["agreement_training_labelers"],
        "held-out labelers' agreement": quality["agreement_heldout_labelers"],
    }
    return [
        *((f"{x}, the baseline", "50%") if x == baseline else (f"{x}: win rate", _interval(models[x]["win_rate"]))
          for x in names),
        *((f"{head['model']} preferred to {x}", _interval(head["against"][x])) for x in asked),
        *((f"{x}: Likert, 1 to 7", f"{models[x]['likert']['mean']:.2f}") for x in names),
        *((f"{x}: {flag}", _share(models[x]["metadata"].get(flag)))
          for flag in ("hallucination", "satisfies constraint") for x in names),
        *((label, _interval(entry)) for label, entry in agreements.items()),
        *((f"alignment tax of {x}, nats a token", _nats(tax["tax"][x])) for x in taxed),
        ("of PPO's tax, given back by the mix", _recovered(tax["recovered"])),
        ("KL of PPO / PPO-ptx, nats a response", f"{models['PPO']['kl']:.1f} / {models['PPO-ptx']['kl']:.1f}"),
        ("facts that GPT / PPO-ptx knows", " / ".join(f"{models[x]['fact_accuracy']:.0%}" for x in ("GPT", "PPO-ptx"))),
    ]  # fmt: skip


def _sentences(runs: Sequence[Run]) -> list[str]:
    """What is to be known when reading the table, as far as it is so in these runs."""
    tax = runs[0]["alignment_tax"]
    return [
        f"As in the paper, hallucination is counted on closed-domain prompts only, and constraints on prompts that "
        f"have one; “of N” is the number of these prompts. The alignment tax of a model is its loss on held-out plain "
        f"text minus that of the pretrained model ({tax['pretrained']}), over {tax['num_blocks']} blocks. The paper "
        "measures it in points lost on public benchmarks, which cannot be set beside it. The share that the "
        "pretraining mix gives back is printed only where PPO's tax is clearly positive."
    ]


def _seen(runs: Sequence[Run]) -> str:
    counts = [run["data"]["overlap"][0]["count"] for run in runs]
    if not any(counts):
        return "None stands word for word in the pretraining corpus, the few-shot examples or another training set"
    verb = "stands" if counts == [1] else "stand"
    return f"{' / '.join(map(str, counts))} of them {verb} word for word in a training set"


def _interval(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{100 * entry['rate']:.1f} ± {50 * (entry['high'] - entry['low']):.1f}%"


def _share(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{_interval(entry)} of {entry['total']}"


def _nats(entry: Mapping[str, float]) -> str:
    return f"{entry['mean']:+.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"


def _recovered(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['mean']:.0%} ({entry['low']:.0%} to {entry['high']:.0%})"


def _command(runs: Sequence[Run], folders: Sequence[Path]) -> str:
    seeds = " ".join(str(run["run"]["seed"]) for run in runs)
    names = " ".join(f"runs/{folder.name}" for folder in folders)
    one = f"`--seed {seeds}`" if len(runs) == 1 else f"`--seed N` for N in {seeds}"
    out = names if len(runs) == 1 else "runs/miniature-N"
    fill = f"python -m benchmarks.end_to_end.seeds {names} --write ."
    return f" `instructrl run miniature --out {out}` with {one}, then `{fill}`."


def _wrapped(text: str) -> str:
    """Lines of the pages' width, broken between words and never inside of a code span."""
    kept = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), text)
    return textwrap.fill(kept, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _made(folder: Path, run: Run) -> str:
    date = datetime.date.fromtimestamp((folder / "results.json").stat().st_mtime).isoformat()
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "transformers"))
    return f"Made on {date} on {os.cpu_count()} {platform.machine()} cores, {versions}:"


def main() -> None:
    chosen = command(__doc__, folders_=[], write=Path)
    folders = [Path(folder) for folder in chosen.folders]
    runs = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    text = section(runs, folders, _made(folders[0], runs[0]))
    if chosen.write is None:
        print(text)
        return
    filled = {
        chosen.write / "docs/results.md": ("results", text),
        chosen.write / "README.md": ("numbers", f"{claims(runs)}\n\n{table(runs, FEW)}"),
    }
    pages = {path: _between(path.read_text(encoding="utf-8"), *what) for path, what in filled.items()}
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
    write_figure(folders[0], chosen.write / FIGURE)


def _between(page: str, marker: str, text: str) -> str:
    """The page with the text between its markers of that name."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    head, rest = page.split(begin)
    return f"{head}{begin}{text}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
