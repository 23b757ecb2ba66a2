"""Exams of a generated world: what an answer to each is worth, and what alignment costs on all of them.

The tax of a model is how far its score lies below that of the pretrained model, in points of 100: the mean over exams,
each of which counts the same (paper, 3.5 and 4.2). All models are asked the same questions, so differences are taken
question by question, and intervals resample the questions within each exam.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.statistics import mean_interval
from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.protocol import Answer, Item, Measure, Task
from instructrl.types import ExamItem

NUM_RESAMPLES = 2000
# (item, a model's answer) -> what it is worth, 0 to 1
Score = Callable[[Any, Any], float]
# model -> exam -> shots -> a score for each item, the same items of all models and shots
Scores = Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How an exam is scored. title, what: for people. metric: its name. score: of one answer."""

    title: str
    what: str
    metric: str
    score: Score


def _f1(item: Item, answer: Any) -> float:
    return metrics.token_f1(answer.text, item.references[0])


def _bleu(item: Item, answer: Any) -> float:
    return metrics.sentence_bleu(answer.text, item.references[0])


def _likeliest(item: Item, answer: Any) -> float:
    return float(answer.means.index(max(answer.means)) in item.right)


# Exams by name, with the set that each is an analogue of.
SCORING: Mapping[str, Scoring] = {
    "reading": Scoring(
        title="Reading (as SQuADv2)", what="what a passage says of somebody, or does not", metric="F1", score=_f1
    ),
    "counting": Scoring(
        title="Counting (as DROP)", what="numbers in a passage, and sums of them", metric="F1", score=_f1
    ),
    "translation": Scoring(
        title="Translation (as WMT)", what="sentences of a foreign language", metric="BLEU of sentences", score=_bleu
    ),
    "reviews": Scoring(
        title="Reviews (as SST)", what="whether a review is positive", metric="accuracy", score=_likeliest
    ),
    "endings": Scoring(
        title="Endings (as HellaSwag)", what="which of four endings is likeliest", metric="accuracy", score=_likeliest
    ),
    "pronouns": Scoring(title="Pronouns (as WSC)", what="what `it` means", metric="accuracy", score=_likeliest),
}


def exam_task(items: Sequence[ExamItem], shots: int, *, max_tokens: int, newline: str) -> Task:
    """An exam as a task. items: of one exam. newline: the token that ends an answer."""
    exam = items[0].exam
    return Task(
        suite=exam,
        items=tuple(as_item(item) for item in items),
        measures=partial(measured, SCORING[exam].metric, SCORING[exam].score),
        shots=shots,
        max_tokens=max_tokens,
        stop=(newline,),
    )


def choice_task(items: Sequence[ExamItem], prompt: str) -> Task:
    """Questions with options as a task of their own. prompt: its name."""
    return Task(
        suite=items[0].exam,
        items=tuple(as_item(item) for item in items),
        measures=partial(measured, "accuracy", _likeliest),
        prompt=prompt,
    )


def as_item(item: ExamItem) -> Item:
    """A question as suites have it, whose options begin with the blank in front of them."""
    return Item(
        context=item.context,
        options=tuple(f" {option}" for option in item.options),
        right=item.right,
        references=item.references,
        question=item.question,
        group=item.group,
    )


def measured(metric: str, score: Score, items: Sequence[Item], answers: Sequence[Answer]) -> list[Measure]:
    """The mean score in points, of all items and of each group."""
    scores = item_scores(score, items, answers)
    found = [metrics.mean_points(metric, items, scores)]
    for group in sorted({item.group for item in items} - {""}):
        places = [place for place, item in enumerate(items) if item.group == group]
        some = [items[place] for place in places], [scores[place] for place in places]
        found.append(metrics.mean_points(metric, *some, group=group))
    return found


def item_scores(score: Score, items: Sequence[Item], answers: Sequence[Answer]) -> list[float]:
    """What each answer is worth, 0 to 1."""
    return [score(item, answer) for item, answer in zip(items, answers, strict=True)]


def paired_difference(scores: Sequence[float], base: Sequence[float]) -> dict[str, float | None]:
    """By how many points of 100 the scores lie above those of the same items in `base`: mean, low and high."""
    return asdict(mean_interval(100 * (np.asarray(scores, dtype=np.float64) - np.asarray(base, dtype=np.float64))))


def exam_tax(
    scores: Scores,
    *,
    pretrained: str = "GPT",
    ppo: str = "PPO",
    ppo_ptx: str = "PPO-ptx",
    seed: int = 0,
) -> dict[str, Any]:
    """What alignment costs on exams, for each number of examples and for all of them together.

    Under "0-shot" (and so on) and "all": `tax`, of each model the mean over exams of `pretrained - model` in points of
    100 with its interval; `exams`, the same of each exam; `recovered`, the share `1 - tax_ptx / tax_ppo` of PPO's tax
    that the pretraining mix gives back, with its interval, None where PPO paid no clear tax.
    Raises ValueError where models were not asked the same.
    """
    _check_same_items(scores)
    shots = sorted({number for exam in scores[pretrained].values() for number in exam})
    ways = {f"{number}-shot": (number,) for number in shots} | {"all": tuple(shots)}
    models = [model for model in scores if model != pretrained]
    found = {}
    for name, numbers in ways.items():
        taxes = {exam: _taxes(scores, pretrained, models, exam, numbers) for exam in scores[pretrained]}
        found[name] = _summary(taxes, models, (ppo, ppo_ptx), seed)
    return {"pretrained": pretrained, "unit": "points", **found}


def _taxes(
    scores: Scores, pretrained: str, models: Sequence[str], exam: str, shots: Sequence[int]
) -> NDArray[np.float64]:
    """[items, models], in points: the mean over numbers of examples."""
    means = {
        model: 100 * np.mean([scores[model][exam][number] for number in shots], axis=0)
        for model in (pretrained, *models)
    }
    return np.stack([means[pretrained] - means[model] for model in models], axis=1)


def _summary(
    taxes: Mapping[str, NDArray[np.float64]], models: Sequence[str], names: tuple[str, str], seed: int
) -> dict[str, Any]:
    """names: of PPO and PPO-ptx."""
    mean = np.mean([values.mean(axis=0) for values in taxes.values()], axis=0)
    drawn = _resampled_means([*taxes.values()], seed)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    rows = zip(models, mean.tolist(), low.tolist(), high.tolist(), strict=True)
    tax = {model: {"mean": value, "low": bottom, "high": top} for model, value, bottom, top in rows}
    by_exam = {
        exam: {model: asdict(mean_interval(values[:, place])) for place, model in enumerate(models)}
        for exam, values in taxes.items()
    }
    recovered = None
    if set(names) <= tax.keys() and tax[names[0]]["low"] > 0:
        places = [models.index(name) for name in names]
        # At most a fortieth of the draws, in which PPO pays nothing, says nothing of the share.
        paid = drawn[drawn[:, places[0]] > 0]
        shares = 1 - paid[:, places[1]] / paid[:, places[0]]
        bottom, top = np.quantile(shares, (0.025, 0.975)).tolist()
        recovered = {"mean": 1 - tax[names[1]]["mean"] / tax[names[0]]["mean"], "low": bottom, "high": top}
    return {"tax": tax, "exams": by_exam, "recovered": recovered}


def _resampled_means(strata: Sequence[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """[resamples, columns]: the mean over strata of the mean of as many rows as each has, drawn with replacement."""
    generator = np.random.default_rng(seed)
    total = np.zeros((NUM_RESAMPLES, strata[0].shape[1]))
    for rows in strata:
        number = len(rows)
        total += generator.multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLES) @ rows / number
    return total / len(strata)


def _check_same_items(scores: Scores) -> None:
    asked = {
        model: {(exam, shots): len(found) for exam, by_shots in exams.items() for shots, found in by_shots.items()}
        for model, exams in scores.items()
    }
    first, *others = asked
    for model in others:
        if asked[model] != asked[first]:
            raise ValueError(f"scores: found other questions of {model} than of {first}, accepted are the same of all")
    numbers = {exam: {asked[first][exam, shots] for shots in found} for exam, found in scores[first].items()}
    uneven = [exam for exam, counts in numbers.items() if len(counts) > 1]
    if uneven:
        raise ValueError(
            f"scores: found other questions of {uneven[0]} with examples than without, accepted are the same"
        )
