"""What the reward model chooses on prompts of validation users: a checkpoint, and the prefix of a prompted model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from instructrl import distributed
from instructrl.evaluation.contenders import Contender
from instructrl.evaluation.statistics import mean_interval
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import sample_texts
from instructrl.rollout.scoring import score_texts
from instructrl.runs.steps import KeptModel, Workspace

# Where a candidate's form has the prompt.
PLACE = "{prompt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What stands around a prompt. text: holds `{prompt}` once."""

    name: str
    text: str

    def form(self, prompt: str) -> str:
        return self.text.replace(PLACE, prompt)


def select_checkpoint(
    work: Workspace, kept: Sequence[KeptModel], reward_model: RewardModel, prompts: Sequence[str], name: str
) -> tuple[Policy, list[dict[str, Any]]]:
    """The kept model whose responses to validation prompts score highest (paper, 3.5, C.1 and C.5), saved as `name`.

    Returns it and a row for each: what is known of it, its mean score with the 95% interval, whether it was selected.
    """

    def step(*_: object) -> list[dict[str, Any]]:
        asked = ((Contender(name=row.name, policy=work.load(row.name)), asdict(row)) for row in kept)
        rows = _scored(work, asked, len(kept), reward_model, prompts, name)
        work.save(work.load(next(row["name"] for row in rows if row["selected"])), name)
        return rows

    given = {"reward model": reward_model, "validation prompts": prompts, **work.rendering}
    rows = work.journal.once(f"{name}_selection", step, given)
    return work.load(name), rows


def read_prefixes(path: str) -> list[Prefix]:
    """The candidates of a YAML file: a list of texts, in each of which `{prompt}` stands once.

    Raises ValueError for anything else, naming the file and the entry.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"prefixes {path}: found {error.strerror}, accepted is a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = str(error).splitlines()[0]
        raise ValueError(f"prefixes {path}: found no YAML ({found}), accepted is a list of texts") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"prefixes {path}: found {_shown(entries)}, accepted is a list of texts")
    for number, text in enumerate(entries, start=1):
        if not isinstance(text, str) or text.count(PLACE) != 1:
            raise ValueError(
                f"prefixes {path}, entry {number}: found {_shown(text)}, accepted is a text with {PLACE} once"
            )
    return [Prefix(name=f"prefix {number}", text=text.strip()) for number, text in enumerate(entries, start=1)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def fitting(work: Workspace, prefixes: Sequence[Prefix], prompts: Sequence[str]) -> list[Prefix]:
    """Those with which every prompt keeps within the limit; the log says which are left out. Raises ValueError where
    that leaves none."""
    limit = work.encoder.limits.max_prompt_tokens
    kept = [prefix for prefix in prefixes if all(work.encoder.fits(prefix.form(prompt)) for prompt in prompts)]
    for prefix in prefixes:
        if prefix not in kept:
            work.log.warn(f"prefix {prefix.name}: left out, since with the longest prompt it has over {limit} tokens")
    if not kept:
        raise ValueError(
            f"prefixes: found {len(prefixes)}, each of over {limit} tokens with the longest prompt, accepted is at "
            "least one that fits"
        )
    return kept


def select_prefix(
    work: Workspace, gpt: Policy, prefixes: Sequence[Prefix], reward_model: RewardModel, prompts: Sequence[str]
) -> tuple[Prefix, list[dict[str, Any]]]:
    """The candidate with which responses to validation prompts score highest (paper, footnote 6).

    Returns it and a row for each: name and text, mean score with the 95% interval, whether it was selected.
    """

    def step(*_: object) -> list[dict[str, Any]]:
        asked = [
            (Contender(name=row.name, policy=gpt, form=row.form), {"prefix": row.name, "text": row.text})
            for row in prefixes
        ]
        return _scored(work, asked, len(asked), reward_model, prompts, "prefix")

    given = {
        "model": gpt,
        "prefixes": prefixes,
        "reward model": reward_model,
        "validation prompts": prompts,
    }
    rows = work.journal.once("prefix_selection", step, given)
    return next(prefix for prefix, row in zip(prefixes, rows, strict=True) if row["selected"]), rows


def _scored(
    work: Workspace,
    asked: Iterable[tuple[Contender, Mapping[str, Any]]],
    number: int,
    reward_model: RewardModel,
    prompts: Sequence[str],
    name: str,
) -> list[dict[str, Any]]:
    """One sampling pass each, all with the same random numbers. Of equal scores the first is selected."""
    rows: list[dict[str, Any]] = []
    with work.log.phase(f"{name} selection", number, "responses") as shown:
        for contender, about in asked:
            texts = [contender.form(prompt) for prompt in prompts]
            samples = sample_texts(contender.policy, work.encoder, texts, work.sampling("selection"))
            scores = score_texts(reward_model, work.encoder, prompts, samples.texts, samples.finished)
            found = mean_interval(scores.tolist())
            rows.append({**about, "score": found.mean, "low": found.low, "high": found.high})
            shown.advance(units=len(prompts))
            distributed.leave_if_wished()
    best = max(range(len(rows)), key=lambda i: rows[i]["score"])
    return [{**row, "selected": i == best} for i, row in enumerate(rows)]
