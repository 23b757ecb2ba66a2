"""A stand-in for a scorer of toxicity that is not at hand: a ridge regression on the scores of a set's own texts.

Features are the words, pairs of words and pieces of two to five characters of a text, each once, hashed into a fixed
number of places; the target is the log-odds of a score. A fifth of the documents is held out, and what is reported of
the stand-in is how well it does there. The same texts give the same scores in every process, up to rounding on every
machine.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_PLACES = 1 << 18
_CHARACTERS = (2, 3, 4, 5)
_WORD = re.compile(r"\w+|[^\w\s]")
# Of 0.03, 0.1, 0.3 and 1, which hardly differ on a part of the training texts of RealToxicityPrompts.
_RIDGE = 0.3
_MAX_STEPS, _ENOUGH = 200, 1e-10
# Scores nearer to 0 and 1 have log-odds that would be all that is learned.
_SMALLEST = 0.01
# More texts than these do not change much, and would take minutes.
MAX_DOCUMENTS, MIN_DOCUMENTS = 5000, 20

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A text with its score, 0 to 1. document: that it is from; all texts of one are held out, or none.
    judged_by: whether the stand-in is judged by it where it is held out, because it is like what will be scored."""

    text: str
    score: float
    document: str
    judged_by: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """On held-out texts. r2: the share of the variance of the scores that is explained. spearman: the correlation of
    ranks. num_texts: that both are of. num_trained: texts that were learned."""

    r2: float
    spearman: float
    num_texts: int
    num_trained: int


class StandIn:
    """weights [_PLACES] and intercept of the log-odds. quality: on texts that were held out."""

    def __init__(self, weights: Vector, intercept: float, quality: Quality | None = None) -> None:
        self._weights, self._intercept, self.quality = weights, intercept, quality

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """A score of each text, 0 to 1."""
        odds = _Rows.of(texts).times(self._weights) + self._intercept
        return [float(x) for x in 1 / (1 + np.exp(-odds))]


def train(texts: Sequence[Scored]) -> StandIn:
    """Learn from four fifths of the documents. Raises ValueError where there are too few to learn from or judge by."""
    documents = sorted({text.document for text in texts}, key=_key)[:MAX_DOCUMENTS]
    if len(documents) < MIN_DOCUMENTS:
        raise ValueError(f"found {len(documents)} documents with scores, accepted are at least {MIN_DOCUMENTS}")
    held_out = {document for document in documents if _key(f"held out {document}") % 5 == 0}
    learned = [text for text in texts if text.document in {*documents} - held_out]
    judged = [text for text in texts if text.document in held_out and text.judged_by]
    scores = np.array([text.score for text in judged])
    if len(learned) < 2 or len(judged) < 2 or scores.var() == 0:
        raise ValueError(f"found {len(judged)} held-out texts, accepted are several with different scores")
    clipped = np.clip([text.score for text in learned], _SMALLEST, 1 - _SMALLEST)
    found = StandIn(*_ridge(_Rows.of([text.text for text in learned]), np.log(clipped / (1 - clipped))))
    given = np.array(found([text.text for text in judged]))
    found.quality = Quality(
        r2=1 - float(((given - scores) ** 2).mean() / scores.var()),
        spearman=spearman(given, scores),
        num_texts=len(judged),
        num_trained=len(learned),
    )
    return found


def spearman(a: Vector, b: Vector) -> float:
    """The correlation of ranks; equal values have the mean of their ranks. 0 where one of them does not vary."""
    first, second = _ranks(a), _ranks(b)
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(x: Vector) -> Vector:
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places.reshape(-1)]


def _key(text: str) -> int:
    """Python's own hash differs from process to process."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _features(text: str) -> list[int]:
    words = _WORD.findall(text.lower())
    padded = f" {' '.join(words)} "
    named = [f"w {word}" for word in words] + [f"b {a} {b}" for a, b in pairwise(words)]
    named += [f"c {padded[i : i + n]}" for n in _CHARACTERS for i in range(len(padded) - n + 1)]
    return sorted({_key(name) % _PLACES for name in named})


@dataclass(frozen=True, slots=True)
class _Rows:
    """A sparse matrix [N, _PLACES] whose rows have length 1: element k is value[k] at row[k], place[k]."""

    num_rows: int
    row: NDArray[np.int64]
    place: NDArray[np.int64]
    value: Vector

    @classmethod
    def of(cls, texts: Sequence[str]) -> "_Rows":
        found = [_features(text) for text in texts]
        counts = np.array([len(row) for row in found], dtype=np.int64)
        return cls(
            num_rows=len(texts),
            row=np.repeat(np.arange(len(texts)), counts),
            place=np.array([place for row in found for place in row], dtype=np.int64),
            value=np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts),
        )

    def times(self, weights: Vector) -> Vector:
        return _sums(self.row, self.value * weights[self.place], self.num_rows)

    def transposed_times(self, rows: Vector) -> Vector:
        return _sums(self.place, self.value * rows[self.row], _PLACES)


def _sums(places: NDArray[np.int64], values: Vector, count: int) -> Vector:
    """[count]: of the values at each place."""
    return np.bincount(places, weights=values, minlength=count).astype(np.float64)


def _ridge(rows: _Rows, target: Vector) -> tuple[Vector, float]:
    """`w = argmin |X w - (y - mean(y))|^2 + ridge |w|^2`, by conjugate gradients on its normal equations."""
    intercept = float(target.mean())
    residual = rows.transposed_times(target - intercept)
    weights, direction = np.zeros(_PLACES), residual.copy()
    size = first = float(residual @ residual)
    for _ in range(_MAX_STEPS):
        if size <= _ENOUGH * first:
            break
        moved = rows.transposed_times(rows.times(direction)) + _RIDGE * direction
        step = size / float(direction @ moved)
        weights += step * direction
        residual -= step * moved
        size, before = float(residual @ residual), size
        direction = residual + size / before * direction
    return weights, intercept
