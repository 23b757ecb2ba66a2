"""Runs of the miniature beside the paper, as the section of the README that holds them.

    python -m benchmarks.end_to_end.seeds runs/miniature-0 [runs/miniature-1 ...]
    python -m benchmarks.end_to_end.seeds runs/miniature-0 [...] --write README.md

The first prints it, the second puts it between the README's markers and the first run's plot beside.
Every number and every comparison comes from the results; a sentence that they do not carry is not written.
"""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrl.evaluation.report import write_figure

BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"
FIGURE = Path("benchmarks/results/miniature_win_rates.svg")
WIDTH = 120
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

Run = Mapping[str, Any]


def section(runs: Sequence[Run], folders: Sequence[Path], made: str) -> str:
    """What stands between the markers. made: when and on what the runs were made."""
    first = runs[0]
    seeds = "one seed" if len(runs) == 1 else f"{len(runs)} seeds"
    prompts = first["models"][0]["win_rate"]["num_prompts"]
    known = " / ".join(_known(run) for run in runs)
    lead = (
        f"{seeds.capitalize()}, {prompts:,} prompts of test users, 95% intervals. {_seen(runs)}; {known} of them ask "
        "for a task that a training prompt asks for too, in whatever words. The last column is the paper's, where it "
        "has the number: win rates are those of its 175B models, and “≈” is read off its figure 4, which is over all "
        "sizes. There, people judge answers to what people asked; here, a rubric judges answers in a generated world. "
        "The two columns are the same quantities, not the same difficulty."
    )
    return "\n\n".join(
        [
            _wrapped(lead),
            table(runs),
            *(_wrapped(sentence) for sentence in _sentences(runs)),
            _wrapped(made + _command(runs, folders)),
        ]
    )


def table(runs: Sequence[Run]) -> str:
    """One row a quantity, one column a run, and the paper's number last."""
    rows: list[list[str]] = [["", *(f"seed {run['run']['seed']}" for run in runs), "paper"]]

    def add(label: str, read: Callable[[Run], str]) -> None:
        rows.append([label, *(read(run) for run in runs), PAPER.get(label, "")])

    names = [model["name"] for model in runs[0]["models"]]
    baseline = runs[0]["run"]["baseline"]
    for name in names:
        if name == baseline:
            add(f"{name}, the baseline", lambda run: "50%")
        else:
            add(f"{name}: win rate", lambda run, name=name: _interval(_model(run, name)["win_rate"]))
    for name in runs[0]["head_to_head"]["against"]:
        if name in ("GPT", "GPT (prompted)"):
            label = f"{runs[0]['head_to_head']['model']} preferred to {name}"
            add(label, lambda run, name=name: _interval(run["head_to_head"]["against"][name]))
    for name in names:
        add(f"{name}: Likert, 1 to 7", lambda run, name=name: f"{_model(run, name)['likert']['mean']:.2f}")
    for flag in ("hallucination", "satisfies constraint"):
        for name in names:
            add(f"{name}: {flag}", lambda run, name=name, flag=flag: _share(_model(run, name)["metadata"].get(flag)))
    for key, label in (
        ("accuracy_training_labelers", "reward model's accuracy on training labelers"),
        ("accuracy_heldout_labelers", "the same on held-out labelers"),
        ("agreement_training_labelers", "training labelers' agreement"),
        ("agreement_heldout_labelers", "held-out labelers' agreement"),
    ):
        add(label, lambda run, key=key: _interval(run["reward_model"][key]))
    for name in runs[0]["alignment_tax"]["tax"]:
        add(f"alignment tax of {name}, nats a token", lambda run, name=name: _nats(run["alignment_tax"]["tax"][name]))
    add("of PPO's tax, given back by the mix", lambda run: _recovered(run["alignment_tax"]["recovered"]))
    add("KL of PPO / PPO-ptx, nats a response", lambda run: _pair(run, "kl", "{:.1f}"))
    add("facts that GPT / PPO-ptx knows", lambda run: _pair(run, "fact_accuracy", "{:.0%}", first="GPT"))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _sentences(runs: Sequence[Run]) -> list[str]:
    """What is to be known when reading the table, as far as it is so in these runs."""
    tax = runs[0]["alignment_tax"]
    found = [
        f"Hallucination is counted for closed-domain prompts alone, constraints for prompts that have one, as in the "
        f"paper: the number of prompts stands beside. The alignment tax is the loss on held-out text like that of the "
        f"pretraining above that of the pretrained model ({tax['pretrained']}), over {tax['num_blocks']} blocks; the "
        "paper has it as the loss of points on public benchmarks, which have no number here. A share given back is "
        "printed where PPO's tax is clearly positive."
    ]
    noise = [run["reward_model"].get("labeler_noise") or {} for run in runs]
    if all(entry.get("heldout", 1) < entry.get("training", 0) for entry in noise):
        sentence = (
            "How far labelers agree is set by hand: the noise of an opinion is "
            f"{noise[0]['training']:g} points of the rubric in training labelers and {noise[0]['heldout']:g} in "
            "held-out ones."
        )
        gaps = [_gap(run["reward_model"]) for run in runs]
        if any(gap > 0 for gap, _ in gaps):
            where = "" if len(runs) == 1 else f" in {sum(gap > 0 for gap, _ in gaps)} of {len(runs)} runs"
            doubt = "" if all(clear for _, clear in gaps) else ", though by less than the intervals are wide"
            sentence += (
                " The reward model orders more pairs of held-out labelers right than of training labelers"
                f"{where}{doubt}: the reverse of the paper, whose reward models are better on the labelers that "
                "trained them."
            )
        found.append(sentence)
    return found


def _gap(quality: Mapping[str, Any]) -> tuple[float, bool]:
    """How much better the reward model is on held-out labelers, and whether the intervals lie apart."""
    seen, unseen = (quality[f"accuracy_{group}_labelers"] for group in ("training", "heldout"))
    apart = unseen["low"] > seen["high"] or seen["low"] > unseen["high"]
    return unseen["rate"] - seen["rate"], apart


def _known(run: Run) -> str:
    row = run["data"]["overlap"][-1]
    return f"{row['count'] / row['total']:.0%}"


def _seen(runs: Sequence[Run]) -> str:
    counts = [sum(row["count"] for row in run["data"]["overlap"][:-1]) for run in runs]
    if not any(counts):
        return "None stands word for word in the pretraining corpus, the few-shot examples or another training set"

    verb = "stands" if counts == [1] else "stand"
    return f"{' / '.join(map(str, counts))} of them {verb} word for word in a training set"


def _model(run: Run, name: str) -> Mapping[str, Any]:
    return next(model for model in run["models"] if model["name"] == name)


def _interval(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "-"
    return f"{100 * entry['rate']:.1f} ± {50 * (entry['high'] - entry['low']):.1f}%"


def _share(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{_interval(entry)} of {entry['total']}"


def _nats(entry: Mapping[str, float]) -> str:
    return f"{entry['mean']:+.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"


def _recovered(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['mean']:.0%} ({entry['low']:.0%} to {entry['high']:.0%})"


def _pair(run: Run, key: str, form: str, first: str = "PPO") -> str:
    return " / ".join(form.format(_model(run, name)[key]) for name in (first, "PPO-ptx"))


def _command(runs: Sequence[Run], folders: Sequence[Path]) -> str:
    seeds = " ".join(str(run["run"]["seed"]) for run in runs)
    names = " ".join(f"runs/{folder.name}" for folder in folders)
    one = f"`--seed {seeds}`" if len(runs) == 1 else f"`--seed N` for N in {seeds}"
    out = names if len(runs) == 1 else "runs/miniature-N"
    fill = f"python -m benchmarks.end_to_end.seeds {names} --write README.md"
    return f" `instructrl run miniature --out {out}` with {one}, then `{fill}`."


def _wrapped(text: str) -> str:
    """Lines of the README's width, broken between words and never inside of a code span."""
    words, parts = [], text.split("`")
    for index, part in enumerate(parts):
        words += [f"`{part}`"] if index % 2 else part.split(" ")
    lines, line = [], ""
    for word in filter(None, words):
        glue = "" if not line or word[0] in ".,;:)" or line.endswith("(") else " "
        if line and len(line) + len(glue) + len(word) > WIDTH and glue:
            lines.append(line)
            line = word
        else:
            line += glue + word
    return "\n".join([*lines, line])


def _made(folder: Path, run: Run) -> str:
    date = datetime.date.fromtimestamp((folder / "results.json").stat().st_mtime).isoformat()
    versions = run["versions"]
    return (
        f"Made on {date} on {os.cpu_count()} {platform.machine()} cores, torch {versions['torch']}, "
        f"transformers {versions['transformers']}:"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--write", type=Path, metavar="README")
    chosen = parser.parse_args(arguments)
    runs = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in chosen.folders]
    text = section(runs, chosen.folders, _made(chosen.folders[0], runs[0]))
    if chosen.write is None:
        print(text)
        return
    page = chosen.write.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    chosen.write.write_text(f"{head}{BEGIN}{text}\n{END}{tail}", encoding="utf-8")
    write_figure(chosen.folders[0], chosen.write.parent / FIGURE)


if __name__ == "__main__":
    main()
