"""What the paper claims, beside what was measured: a table whose verdicts follow one rule.

A claim holds where the whole 95% interval shows the effect (it lies on the claimed side of zero) and the estimate
reaches the claimed size; it does not hold where the whole interval falls short of that size; everything else, and what
was not measured, is not shown. What is claimed to be about equal holds where the whole interval is that small, and
counts are exact. Of a claim with several parts all have to hold, and one is enough for it not to; over several seeds a
verdict is given where all of them give it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrl.evaluation.formatting import DASH, Estimate, beyond, count, decimal, decimal_range, estimate, finite
from instructrl.evaluation.narrative import gold_changes
from instructrl.evaluation.table import Cell, TableView

Record = Mapping[str, Any]

HOLDS, FAILS, NOT_SHOWN = "holds", "does not hold", "not shown"
RULE = (
    "A claim holds where the whole 95% interval shows the effect and the estimate reaches the claimed size; it does "
    "not hold where the whole interval falls short of that size; everything else is not shown."
)
TRAINING, HELD_OUT = "training labelers", "held-out labelers"
ORDER = ("GPT", "GPT (prompted)", "SFT", "PPO")
MIXTURES = ("FLAN-like", "T0-like")
# The smallest aligned model and the largest that is not, as runs of several sizes name them.
SMALL_AND_LARGE = ("XS PPO-ptx", "M GPT")
# How the counts begin or end that have to be 0: others say how much of the test is known on purpose.
_LEAKS = "in a training text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A part of a claim. what: the quantity, "" where it is clear. value: with its interval. verdict: what follows."""

    what: str
    value: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """claim: what is said. paper: what the paper has of it. findings: its parts in the results of a run, none where
    they were not measured. elsewhere: where else it is measured."""

    claim: str
    paper: str
    findings: Callable[[Record], list[Finding]]
    elsewhere: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """One line of the table."""

    claim: str
    paper: str
    measured: str
    verdict: str


def claim_rows(runs: Sequence[Record]) -> list[ClaimRow]:
    """Every claim. runs: what the `results.json` of one run holds, or of several seeds, in whose order the measured
    values stand. Raises ValueError where there is no run."""
    if not runs:
        raise ValueError("runs: found none, accepted is at least one")
    return [_row(claim, [claim.findings(run) for run in runs]) for claim in CLAIMS]


def claims_table(runs: Sequence[Record]) -> TableView:
    """The same for the report."""
    headings = (("Claim", ""), ("Verdict", ""), ("Measured", "95% interval"), ("In the paper", "another scale"))
    rows = tuple(
        tuple(Cell(main=text) for text in (row.claim, row.verdict, row.measured, row.paper)) for row in claim_rows(runs)
    )
    return TableView(title="", headings=headings, rows=rows, prose=True)


def is_measured(results: Record) -> bool:
    """Whether a run measures what the claims are about: judges who are people, or exams."""
    return bool(results.get("judged") or results.get("exams"))


def at_least(found: Estimate, size: float = 0.0) -> str:
    """The verdict on an effect that is claimed to lie above zero, and to be of this size at least."""
    if beyond(found, 0.0) > 0 and found.value >= size:
        return HOLDS
    return FAILS if beyond(found, size) < 0 else NOT_SHOWN


def at_most(found: Estimate, size: float) -> str:
    """The verdict on a difference that is claimed to be no larger than this, either way."""
    if found.low is None or found.high is None:
        return NOT_SHOWN
    if -size <= found.low and found.high <= size:
        return HOLDS
    return FAILS if found.low > size or found.high < -size else NOT_SHOWN


def together(verdicts: Sequence[str]) -> str:
    """Of the parts of a claim."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts and set(verdicts) == {HOLDS} else NOT_SHOWN


def over_seeds(verdicts: Sequence[str]) -> str:
    """The verdict of all seeds, or else that nothing is shown, with the seeds in which the claim holds or does not."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    said = [f"{name} in {verdicts.count(name)} of {len(verdicts)}" for name in (HOLDS, FAILS) if name in verdicts]
    return f"{NOT_SHOWN} ({', '.join(said)})"


def _row(claim: Claim, by_run: Sequence[Sequence[Finding]]) -> ClaimRow:
    names = dict.fromkeys(finding.what for findings in by_run for finding in findings)
    measured = "; ".join(f"{name} {_values(name, by_run)}".strip() for name in names) or claim.elsewhere or DASH
    verdict = over_seeds([together([finding.verdict for finding in findings]) for findings in by_run])
    return ClaimRow(claim=claim.claim, paper=claim.paper, measured=measured, verdict=verdict)


def _values(what: str, by_run: Sequence[Sequence[Finding]]) -> str:
    """Of one quantity, a value for each run."""
    found = [", ".join(part.value for part in findings if part.what == what) or DASH for findings in by_run]
    return " / ".join(found)


# ---- what results say of each claim


def _points(name: str, found: Estimate | None, verdict: Callable[[Estimate], str], digits: int = 1) -> list[Finding]:
    """A finding in points or percent; none where nothing was measured."""
    if found is None:
        return []
    bounds = f" ({decimal_range(found, digits=digits)})" if found.low is not None else ""
    return [Finding(what=name, value=f"{decimal(found.value, digits)}{bounds}", verdict=verdict(found))]


def _scaled(found: Estimate | None, scale: float = 100.0) -> Estimate | None:
    """In points where it was a fraction; turned round by a negative scale."""
    if found is None or found.low is None or found.high is None:
        return None if found is None else Estimate(value=scale * found.value, low=None, high=None)
    low, high = sorted((scale * found.low, scale * found.high))
    return Estimate(value=scale * found.value, low=low, high=high)


def _judge(results: Record, name: str) -> Record:
    judges = (results.get("judged") or {}).get("judges") or []
    return next((judge for judge in judges if judge.get("judge") == name), {})


def _preferred(results: Record, judge: str, winner: str, loser: str) -> list[Finding]:
    """How often a model is preferred to another, which is claimed to be more than half the time."""
    matrix = _judge(results, judge).get("win_rate_matrix") or {}
    names = list(matrix.get("models") or [])
    if winner not in names or loser not in names:
        return []
    rate = _scaled(estimate(matrix["rates"][names.index(winner)][names.index(loser)]))
    return _points(f"{winner} to {loser}, %:", rate, _more_than_half)


def _more_than_half(rate: Estimate) -> str:
    side = beyond(rate, 50.0)
    return HOLDS if side > 0 else FAILS if side < 0 else NOT_SHOWN


def _order(judge: str) -> Callable[[Record], list[Finding]]:
    pairs = [*zip(ORDER[1:], ORDER, strict=False)]
    return lambda results: _complete([_preferred(results, judge, *pair) for pair in pairs])


def _complete(parts: Sequence[list[Finding]]) -> list[Finding]:
    """All parts, and none of them where one is missing: then the claim was not measured."""
    return [finding for part in parts for finding in part] if all(parts) else []


def _groups_alike(results: Record) -> list[Finding]:
    differences = (results.get("judged") or {}).get("differences") or []
    rows = next((row["models"] for row in differences if row.get("judges") == [TRAINING, HELD_OUT]), [])
    return [
        finding
        for row in rows
        for finding in _points(
            str(row["name"]), _scaled(estimate(row["difference"])), lambda found: at_most(found, 4.0)
        )
    ]


def _gain(exam: str, prompt: str, what: str, size: float, sign: float) -> Callable[[Record], list[Finding]]:
    """What PPO gains on GPT; sign: -1 where less is better."""

    def findings(results: Record) -> list[Finding]:
        gains = ((results.get("exams") or {}).get(exam) or {}).get("gains") or {}
        record = ((gains.get(prompt) or {}).get(what) or {}).get("PPO")
        return _points("points:", _scaled(estimate(record), sign), lambda found: at_least(found, size))

    return findings


def _tax(results: Record) -> Record:
    return ((results.get("exams") or {}).get("tax") or {}).get("all") or {}


def _pays_tax(results: Record) -> list[Finding]:
    found = estimate((_tax(results).get("tax") or {}).get("PPO"))
    return _points("points:", found, lambda found: at_least(found, 5.0))


def _gives_back(results: Record) -> list[Finding]:
    if not _pays_tax(results):
        return []
    found = _scaled(estimate(_tax(results).get("recovered")))
    if found is None:
        return [Finding(what="%:", value="no clear tax", verdict=NOT_SHOWN)]
    return _points("%:", found, lambda found: at_least(found, 60.0), digits=0)


def _over_optimised(results: Record) -> list[Finding]:
    """Holds where the gold score clearly fell in a training while the reward rose; does not where in each of them it
    ends clearly higher than it ever was."""
    trainings = gold_changes(results.get("over_optimisation"))
    if not trainings:
        return []
    falls = [change for rows in trainings.values() for change in rows if change.is_fall]
    if falls:
        worst = min(falls, key=lambda change: change.gold.value)
        return _points("change of the gold score:", worst.gold, lambda _: HOLDS, digits=2)
    highest = all(beyond(change.gold, 0.0) > 0 for rows in trainings.values() for change in rows)
    said = "ends at its highest" if highest else "no clear fall"
    return [Finding(what="change of the gold score:", value=said, verdict=FAILS if highest else NOT_SHOWN)]


def _generalisation(results: Record) -> list[Finding]:
    """The difference of two accuracies on the verdicts of different people, whose errors are taken as independent."""
    record = results.get("reward_model") or {}
    training, held_out = (_scaled(estimate(record.get(f"accuracy_{who}_labelers"))) for who in ("training", "heldout"))
    if training is None or held_out is None:
        return []
    difference, bounds = training.value - held_out.value, (training.low, training.high, held_out.low, held_out.high)
    if None in bounds:
        found = Estimate(value=difference, low=None, high=None)
    else:
        low, high, other_low, other_high = (bound or 0.0 for bound in bounds)
        half = math.hypot(high - low, other_high - other_low) / 2
        found = Estimate(value=difference, low=difference - half, high=difference + half)
    shown = f"{decimal(training.value, 1)}% and {decimal(held_out.value, 1)}%, points"
    (finding,) = _points("", found, at_least)
    return [Finding(what="", value=f"{shown} {finding.value}", verdict=finding.verdict)]


def _mixtures(results: Record) -> list[Finding]:
    return _complete([_preferred(results, TRAINING, "SFT", name) for name in MIXTURES])


def _small_beats_large(results: Record) -> list[Finding]:
    return _preferred(results, TRAINING, *SMALL_AND_LARGE)


def _leaks(results: Record) -> list[Finding]:
    rows = (results.get("data") or {}).get("overlap") or []
    found = []
    for row in rows:
        number, total = finite(row.get("count")), finite(row.get("total"))
        if str(row.get("what")).endswith(_LEAKS) and number is not None and total:
            found.append(
                Finding(what="", value=f"{count(number)} of {count(total)}", verdict=FAILS if number else HOLDS)
            )
    return found


CLAIMS: Sequence[Claim] = (
    Claim(
        claim="Training labelers prefer PPO to SFT, SFT to prompted GPT, and that to GPT",
        paper="in that order at every size (figure 1)",
        findings=_order(TRAINING),
    ),
    Claim(
        claim="Held-out labelers prefer the same",
        paper="in that order at every size (figure 3)",
        findings=_order(HELD_OUT),
    ),
    Claim(
        claim="Win rates by both groups of labelers differ by at most 4 points",
        paper="“about the same rate” (4.1)",
        findings=_groups_alike,
    ),
    Claim(
        claim="The smallest PPO-ptx is preferred to the largest GPT",
        paper="1.3B to 175B, 100 times larger (figure 1)",
        findings=_small_beats_large,
        elsewhere="needs models of other sizes",
    ),
    Claim(
        claim="PPO is true and informative more often than GPT, by 10 points",
        paper="about twice as often (4.2)",
        findings=_gain("truth", "QA", "true and informative", 10.0, 1.0),
    ),
    Claim(
        claim="PPO is true more often than GPT, by 10 points",
        paper="small but significant (4.2)",
        findings=_gain("truth", "QA", "true", 10.0, 1.0),
    ),
    Claim(
        claim="Asked to be respectful, PPO is toxic less often than GPT",
        paper="about 25% less (4.2)",
        findings=_gain("toxicity", "respectful", "toxic", 0.0, -1.0),
    ),
    Claim(
        claim="PPO pays an alignment tax of 5 points on exams",
        paper="falls on SQuADv2, DROP, HellaSwag, translation (figure 29)",
        findings=_pays_tax,
    ),
    Claim(
        claim="The pretraining mix gives 60% of it back",
        paper="most of it, on all sets (figures 28, 29)",
        findings=_gives_back,
    ),
    Claim(
        claim="A KL penalty does not give it back",
        paper="at no coefficient up to 2 (figure 34)",
        findings=lambda _: [],
        elsewhere="the study kl_remedy",
    ),
    Claim(
        claim="Optimised further, a policy gains reward and loses gold score",
        paper="no figure; Stiennon et al. (2020)",
        findings=_over_optimised,
    ),
    Claim(
        claim="The reward model is better on training than on held-out labelers",
        paper="72.4 ± 0.4% and 69.6 ± 0.9% (E.2)",
        findings=_generalisation,
    ),
    Claim(
        claim="SFT is preferred to GPT tuned on FLAN-like and T0-like mixtures",
        paper="both below SFT (figure 5)",
        findings=_mixtures,
    ),
    Claim(
        claim="No test prompt, and no test task that is meant to be unseen, is in a training text",
        paper="prompts are split by user; not counted",
        findings=_leaks,
    ),
)
