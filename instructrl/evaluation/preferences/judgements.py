"""What judges said of pairs of responses, and the numbers of one judge: win rates against a baseline, all pairs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from instructrl.evaluation.preferences.entries import Gamed, all_against_all, length_controlled
from instructrl.evaluation.preferences.games import games_from_verdicts
from instructrl.evaluation.statistics import pair_rate, win_rate

if TYPE_CHECKING:  # verdicts alone are read without torch
    from instructrl.types import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said of two responses to an instruction.

    models: who gave the first and the second one, None where that is not known. outcome: 0 where the first is better, 1
    where the second is, what lies between is how sure the judge is, 0.5 a tie; None where there is no verdict. judge:
    its name; one that stands for several people may judge a pair several times. dataset: of the instruction, "" for
    none.
    """

    instruction: str
    texts: tuple[str, str]
    models: tuple[str, str] | None
    outcome: float | None
    judge: str
    dataset: str = ""

    @property
    def swapped(self) -> "Judgement":
        """The same with the responses in the other order."""
        return Judgement(
            instruction=self.instruction,
            texts=(self.texts[1], self.texts[0]),
            models=None if self.models is None else (self.models[1], self.models[0]),
            outcome=None if self.outcome is None else 1 - self.outcome,
            judge=self.judge,
            dataset=self.dataset,
        )


def of_comparisons(records: "Iterable[Comparison]", judge: str = "people") -> list[Judgement]:
    """A judgement for every pair of completions of each comparison, whoever labeled it: with several labelers of the
    same completions, `judge` judges several times. What neither is preferred to the other is a tie."""
    found = []
    for row in records:
        for i, j in combinations(range(len(row.completions)), 2):
            outcome = 0.5 + 0.5 * ((j, i) in row.preferred) - 0.5 * ((i, j) in row.preferred)
            texts = (row.completions[i], row.completions[j])
            found.append(
                Judgement(
                    instruction=row.prompt, texts=texts, models=None, outcome=outcome, judge=judge, dataset=row.source
                )
            )
    return found


def of_scores(
    prompts: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float | None]],
    judge: str,
    datasets: Sequence[str] | None = None,
) -> list[Judgement]:
    """Of all pairs of models on the same prompts, by a judge's scores: the higher one is better, equal ones and equal
    responses tie, and without a score there is no verdict. texts, scores: of each model, one a prompt."""
    found = []
    for first, second in combinations(texts, 2):
        for i, prompt in enumerate(prompts):
            pair = (texts[first][i], texts[second][i])
            outcome = _preferred(scores[first][i], scores[second][i], same=pair[0] == pair[1])
            found.append(
                Judgement(
                    instruction=prompt,
                    texts=pair,
                    models=(first, second),
                    outcome=outcome,
                    judge=judge,
                    dataset="" if datasets is None else datasets[i],
                )
            )
    return found


def by_scores_of_pairs(
    judgements: Iterable[Judgement], scores: Callable[[list[tuple[str, str]]], Sequence[float | None]], judge: str
) -> list[Judgement]:
    """Each pair that was judged once more, by scores. scores: of (instruction, response), None where there is none."""
    pairs = list({(row.instruction, row.texts, row.models): row for row in judgements}.values())
    asked = list(dict.fromkeys((row.instruction, text) for row in pairs for text in row.texts))
    found = dict(zip(asked, scores(asked), strict=True))
    return [
        Judgement(
            instruction=row.instruction,
            texts=row.texts,
            models=row.models,
            outcome=_preferred(
                *(found[row.instruction, text] for text in row.texts), same=row.texts[0] == row.texts[1]
            ),
            judge=judge,
            dataset=row.dataset,
        )
        for row in pairs
    ]


def _preferred(first: float | None, second: float | None, *, same: bool) -> float | None:
    if first is None or second is None:
        return None
    return 0.5 if same or first == second else float(second > first)


def baseline_of(judgements: Sequence[Judgement]) -> str | None:
    """The model that is the first one of every pair; None where there is none, or more than one."""
    firsts = {row.models[0] for row in judgements if row.models is not None}
    return firsts.pop() if len(firsts) == 1 else None


def judged_models(judgements: Sequence[Judgement], baseline: str | None, gamed: Gamed | None = None) -> dict[str, Any]:
    """The entries `models`, `win_rate_matrix` and `ratings` by one judge; none where no models are named.

    A model's win rate is over its pairs with the baseline; without a baseline there are no win rates. `share_won` is
    the share that a model won of all its pairs, whomever it met. gamed: as `length_controlled` takes it.
    """
    named = [(row, row.models) for row in judgements if row.models is not None and row.models[0] != row.models[1]]
    order = [*([] if baseline is None else [baseline]), *(name for _, models in named for name in models)]
    models = list(dict.fromkeys(order))
    if not named:
        return {}
    games = games_from_verdicts(
        [(row.instruction, *pair, row.outcome) for row, pair in named if row.outcome is not None], models
    )
    won, played = np.zeros((2, len(models)))
    for (i, j), wins, counts in zip(games.pairs, games.wins.sum(axis=0), games.counts.sum(axis=0), strict=True):
        won[[i, j]] += wins, counts - wins
        played[[i, j]] += counts
    rows = []
    for at, name in enumerate(models):
        pairs = [row for row, pair in named if baseline is not None and set(pair) == {baseline, name}]
        share = float(won[at] / played[at]) if played[at] else None
        rows.append({"name": name, "share_won": share, **(_against(pairs, name, gamed) if pairs else {})})
    return {"models": rows, **all_against_all(games)}


def _against(judgements: Sequence[Judgement], model: str, gamed: Gamed | None) -> dict[str, Any]:
    """The numbers of a model against the baseline, as alpaca_eval has them, which gives its rates in percent.

    The interval takes instructions as independent, of which people may have judged one several times.
    """
    pairs = [row if row.models is not None and row.models[1] == model else row.swapped for row in judgements]
    outcomes = np.array([np.nan if row.outcome is None else row.outcome for row in pairs])
    judged = outcomes[~np.isnan(outcomes)]
    if not len(judged):
        return {}
    sums: dict[str, list[float]] = {}
    for row in pairs:
        if row.outcome is not None:
            sums.setdefault(row.instruction, []).append(row.outcome)
    clustered = pair_rate([sum(found) for found in sums.values()], [len(found) for found in sums.values()])
    assert clustered is not None  # there is a verdict
    rate = win_rate(judged, num_resamples=1)
    texts, theirs = [row.texts[1] for row in pairs], [row.texts[0] for row in pairs]
    return {
        "win_rate": {
            "rate": rate.rate,
            "standard_error": rate.standard_error,
            "low": clustered.low,
            "high": clustered.high,
            "num_prompts": len(sums),
        },
        "length_controlled": length_controlled(outcomes, texts, theirs, gamed),
        # A verdict between is taken for a win or a loss, and one half stays one half.
        "discrete_win_rate": float(np.where(judged == 0.5, 0.5, np.round(judged)).mean()),
        "num_wins": int((judged > 0.5).sum()),
        "num_losses": int((judged < 0.5).sum()),
        "num_ties": int((judged == 0.5).sum()),
        "num_without_verdict": len(outcomes) - len(judged),
        "average_length": float(np.mean([len(text) for text in texts])),
    }
