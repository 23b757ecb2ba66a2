"""What written answers and chosen options are worth, and the intervals of their means.

Items of one passage or dialogue resemble each other, so the intervals of what is measured on them are those of a ratio
over clusters (`statistics.pair_rate`). Where items are independent, a share has Wilson's interval and a mean the normal
one.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrl.evaluation.statistics import PairRate, bootstrap_interval, pair_rate, proportion
from instructrl.evaluation.suites.protocol import Item, Measure, Written
from instructrl.rollout.options import Likelihoods

QUAC_MIN_F1 = 0.4  # of people, below which its official script leaves a question out
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


# ---- answers to questions about a text


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and spare white space, as SQuAD's official script does it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 of two texts as bags of normalised tokens: `2 * common / (tokens of one + tokens of the other)`.

    Where one of them has no tokens, it is 1 if neither has and 0 otherwise (Rajpurkar et al. 2018, evaluate-v2.0.py).
    """
    given, wanted = normalised(answer).split(), normalised(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def exact_match(answer: str, reference: str) -> float:
    """1 where two texts are the same when normalised."""
    return float(normalised(answer) == normalised(reference))


def best(metric: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """The metric against the reference that is best for the answer."""
    return max(metric(answer, reference) for reference in references)


def quac_f1(answer: str, references: Sequence[str]) -> float | None:
    """QuAC's own F1 (Choi et al. 2018, its official script): None for a question that people answer too differently.

    A model is compared with as many references as a person is who is compared with the others: the mean over the
    references of the best F1 against all but it. The same mean of the references themselves is the F1 of people; where
    it is below 0.4 the question does not count. Of a single reference, its F1 counts.
    """
    if len(references) == 1:
        return token_f1(answer, references[0])
    rest = [[*references[:left], *references[left + 1 :]] for left in range(len(references))]
    people = [best(token_f1, one, others) for one, others in zip(references, rest, strict=True)]
    if sum(people) / len(people) < QUAC_MIN_F1:
        return None
    return sum(best(token_f1, answer, others) for others in rest) / len(rest)


def drop_f1(answer: str, reference: str) -> float:
    """DROP's own F1 of one written span against a reference, whose spans are its lines (Dua et al. 2019).

    Tokens are also split at hyphens, numbers are compared by value, and bags are sets. A span that has numbers of which
    the answer has none gives 0. The answer is aligned with the span that suits it best, and the others count 0:
    `max over spans / number of spans`, rounded to two places as the official script rounds it.
    """
    spans = reference.split("\n")
    return round(max(_span_f1(_drop_bag(answer), _drop_bag(span)) for span in spans) / len(spans), 2)


def _drop_bag(text: str) -> set[str]:
    words = (_drop_word(word) for word in re.split(r" |-", text.lower()))
    return {part for word in words for part in word.split()}


def _drop_word(word: str) -> str:
    bare = word if _is_number(word) else word.translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", str(float(bare)) if _is_number(bare) else bare)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _span_f1(given: set[str], wanted: set[str]) -> float:
    numbers = {word for word in wanted if _is_number(word)}
    if numbers and not numbers & given:
        return 0.0
    common = len(given & wanted)
    precision, recall = common / len(given) if given else 1.0, common / len(wanted) if wanted else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ---- their means


def mean_points(metric: str, items: Sequence[Item], values: Sequence[float], *, group: str = "") -> Measure:
    """The mean, in points, of values of 0 to 1, with the interval over clusters. items: what the values are of."""
    found = clustered(items, values)
    return Measure(
        metric=metric,
        unit="points",
        value=100 * found.rate,
        low=100 * found.low,
        high=100 * found.high,
        num_items=len(items),
        group=group,
    )


def mean_share(metric: str, items: Sequence[Item], values: Sequence[float], *, group: str = "") -> Measure:
    """The mean of values of 0 to 1, with the interval over clusters, which ends where they do."""
    found = clustered(items, values)
    return Measure(metric=metric, value=found.rate, low=found.low, high=found.high, num_items=len(items), group=group)


def accuracy(items: Sequence[Item], answers: Sequence[Likelihoods]) -> list[Measure]:
    """How often the option of the highest log-probability per token is right (paper, appendix D: its "lowest" has to
    mean the lowest negative one). The first of equal options is the answer."""
    pairs = zip(items, answers, strict=True)
    return [share("accuracy", items, [row.means.index(max(row.means)) in item.right for item, row in pairs])]


def share(metric: str, items: Sequence[Item], right: Sequence[bool]) -> Measure:
    """How many of the items are right, with Wilson's interval, or that over clusters where items share one."""
    named = [item.cluster for item in items if item.cluster]
    if len(set(named)) < len(named):
        found = clustered(items, [float(value) for value in right])
    else:
        found = proportion(sum(right), len(items))
    return Measure(metric=metric, value=found.rate, low=found.low, high=found.high, num_items=len(items))


def weighted_mean(metric: str, items: Sequence[Item], values: Sequence[float], *, group: str = "") -> Measure:
    """The mean of values that weighs each as its item does: of all a set has, where some were likelier to be drawn.

    That of a ratio with its interval, as `pair_rate` has it; a single item shows no spread. It takes items as drawn
    independently; of strata with fixed counts it is a little wide.
    """
    weights = [item.weight for item in items]
    found = pair_rate([weight * value for weight, value in zip(weights, values, strict=True)], weights)
    if found is None:
        raise ValueError("values: found none, accepted is at least one")
    low, high = (found.low, found.high) if len(items) > 1 else (None, None)
    return Measure(metric=metric, value=found.rate, low=low, high=high, num_items=len(items), group=group)


def clustered(items: Sequence[Item], values: Sequence[float]) -> PairRate:
    """The mean of values of 0 to 1, one an item, with an interval that takes clusters of items as independent."""
    sums: dict[str | int, float] = {}
    counts: Counter[str | int] = Counter()
    for place, (item, value) in enumerate(zip(items, values, strict=True)):
        key = item.cluster or place
        sums[key] = sums.get(key, 0.0) + value
        counts[key] += 1
    found = pair_rate(list(sums.values()), list(counts.values()))
    if found is None:
        raise ValueError("values: found none, accepted is at least one")
    return found


# ---- translations and summaries


def bleu(items: Sequence[Item], answers: Sequence[Written]) -> list[Measure]:
    """Corpus BLEU of sacrebleu, 0 to 100 (Papineni et al. 2002; Post 2018): its tokens 13a, case counts.

    `min(1, exp(1 - r / c)) * exp(mean over n = 1..4 of log(common n-grams / n-grams))` of the c tokens that were
    written and the r of the references; a length without common n-grams is smoothed. The interval resamples sentences,
    of which it adds the counts.
    """
    of = library("sacrebleu").BLEU
    texts, references = [answer.text.strip() for answer in answers], [item.references[0] for item in items]
    # That a sentence may have fewer than four tokens is no news here: its counts are taken, not its score.
    sentences = of(effective_order=True)
    parts = [sentences.sentence_score(text, [wanted]) for text, wanted in zip(texts, references, strict=True)]
    rows = [(*part.counts, *part.totals, part.sys_len, part.ref_len) for part in parts]

    def scores(*sums: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = (list(map(int, row)) for row in zip(*sums, strict=True))
        return np.array([of.compute_bleu(row[:4], row[4:8], *row[8:], smooth_method="exp").score for row in drawn])

    low, high = bootstrap_interval(scores, list(np.array(rows, dtype=np.float64).T))
    value = of().corpus_score(texts, [references]).score
    value, low, high = (min(score, 100.0) for score in (value, low, high))  # rounding leaves a whole 100 above it
    return [Measure(metric="BLEU", unit="points", value=value, low=low, high=high, num_items=len(items))]


def sentence_bleu(answer: str, reference: str) -> float:
    """BLEU of one sentence whose tokens stand between blanks, 0 to 1: as sacrebleu has it, and without it.

    `min(1, exp(1 - r / c)) * exp(mean over n of log(common n-grams / n-grams))` for n up to four, or to the c tokens of
    the answer where it has fewer. A length without common n-grams counts as if it had a half of one, the next such
    length a quarter, and so on (sacrebleu's `exp`); without a common token it is 0.
    """
    given, wanted = answer.split(), reference.split()
    logs: list[float] = []
    missed = 0
    for n in range(1, min(len(given), 4) + 1):
        ours, theirs = (Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (given, wanted))
        common = (ours & theirs).total()
        if not common:
            missed += 1
        if missed == n:
            return 0.0
        logs.append(math.log((common or 0.5**missed) / ours.total()))
    if not logs:
        return 0.0
    return min(1.0, math.exp(1 - len(wanted) / len(given))) * math.exp(sum(logs) / len(logs))


def rouge_l(items: Sequence[Item], answers: Sequence[Written]) -> list[Measure]:
    """The mean F of ROUGE-L of rouge-score (Lin 2004), 0 to 1: `2 * l / (tokens of one + tokens of the other)`, where l
    is the length of the longest common subsequence of all tokens, each reduced to its stem by Porter's rules.

    Papers on summaries reduce to stems (option -m of ROUGE-1.5.5); without it, numbers are a little lower.
    """
    scorer = library("rouge_score", "rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(items, answers, strict=True)
    found = [scorer.score(item.references[0], answer.text)["rougeL"].fmeasure for item, answer in pairs]
    return [mean_share("ROUGE-L", items, found)]


def library(name: str, module: str = "") -> Any:
    """A library that not everybody has. Raises ValueError where it is missing."""
    try:
        return import_module(f"{name}.{module}" if module else name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f"suites: found no {name}, accepted is with it: pip install instructrl[suites]") from None
