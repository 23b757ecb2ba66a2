"""Win rates against a baseline: what `instructrl eval` reads for them, and what it says of each model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from instructrl.commands.settings import EvalCommand
from instructrl.data.readers import holds_comparisons
from instructrl.evaluation.contenders import PORTION
from instructrl.evaluation.preferences.entries import all_by_scores, length_controlled
from instructrl.evaluation.results import identities
from instructrl.evaluation.statistics import outcomes_from_scores, win_rate
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import spread_for_use
from instructrl.rollout.generate import Samples, Sampling, sample_texts
from instructrl.rollout.scoring import score_texts
from instructrl.runs.judging import judge_note
from instructrl.runs.portions import Portions
from instructrl.runs.reading import Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_judge, load_other_policy, load_start
from instructrl.runs.steps import Workspace
from instructrl.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparing:
    """What models are compared with, read and found good."""

    judge: RewardModel
    reader: Reader
    prompts: list[Prompt]
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Responses of a model and the judge's scores of them, one a prompt."""

    name: str
    samples: Samples
    scores: list[float]


def read_comparing(config: EvalCommand, recipe: Recipe) -> Comparing:
    """Raises ValueError for a model, a judge or prompts that cannot be used; writes nothing."""
    assert config.baseline is not None  # the settings see to it
    assert config.reward_model is not None
    assert config.data is not None
    encoder, _ = load_start(config.baseline, recipe, config)
    judge = load_judge(config.reward_model, encoder).eval()
    spread_for_use(judge, config.weights)
    for path in config.models:
        load_other_policy(path, encoder)  # one at a time in memory, so that all are known to be good before any is used
    reader = Reader(encoder, config.long_prompts)
    prompts = list(reader.prompts(config.data))
    if holds_comparisons(config.data):
        reader.notes.append(
            f"{config.data}: found comparisons, whose prompts alone are used; a judge that was trained on them scores "
            "them too well"
        )
    sampling = Sampling(
        seed=config.seed,
        temperature=config.temperature,
        truncation=config.sampling,
        max_response_tokens=config.limits.max_response_tokens,
    )
    return Comparing(judge=judge, reader=reader, prompts=prompts, sampling=sampling)


def answered(work: Workspace, number: int, name: str, policy: Policy, given: Comparing) -> Answered:
    """Responses and their scores, in portions of which each is done once. number: of the model among all."""
    texts, judge = [prompt.text for prompt in given.prompts], given.judge
    portions = Portions(work.folder, work.log, f"{number:02d}", policy, judge, texts, given.sampling, work.rendering)
    found: dict[str, list] = {"texts": [], "finished": [], "scores": []}

    def answers(start: int) -> dict[str, list]:
        some = texts[start : start + PORTION]
        samples = sample_texts(policy, work.encoder, some, given.sampling, first_episode=start)
        scores = score_texts(judge, work.encoder, some, samples.texts, samples.finished).tolist()
        return {**asdict(samples), "scores": scores}

    with work.log.phase(name, len(texts), "responses") as progress:
        for start in range(0, len(texts), PORTION):
            portion = portions.once(f"{start:06d}", partial(answers, start))
            for field, rows in portion.items():
                found[field] += rows
            progress.advance(len(portion["texts"]), units=len(portion["texts"]))
    return Answered(
        name=name, samples=Samples(texts=found["texts"], finished=found["finished"]), scores=found["scores"]
    )


def compared(config: EvalCommand, prompts: Sequence[Prompt], performances: Sequence[Answered]) -> dict[str, Any]:
    """Entries of the results. performances: the baseline's first."""
    users = [prompt.user for prompt in prompts]
    names, first = [row.name for row in performances], performances[0]
    same = [
        [a == b for a, b in zip(identities(row.samples), identities(first.samples), strict=True)]
        for row in performances
    ]
    outcomes = [
        outcomes_from_scores(row.scores, first.scores, tied) for row, tied in zip(performances, same, strict=True)
    ]
    models = [
        {
            "name": row.name,
            "path": path,
            "win_rate": asdict(win_rate(won, users)),
            "length_controlled": length_controlled(won, row.samples.texts, first.samples.texts),
            "score": sum(row.scores) / len(row.scores),
            "finished": sum(row.samples.finished) / len(prompts),
        }
        for path, row, won in zip(config.paths, performances, outcomes, strict=True)
    ]
    responses = [
        {
            "prompt": prompt.text,
            "category": prompt.category,
            "responses": {
                row.name: {"text": row.samples.texts[i], "likert": None, "score": row.scores[i]} for row in performances
            },
        }
        for i, prompt in enumerate(prompts)
    ]
    run = {
        "description": f"models compared on {len(prompts)} prompts",
        "judge": f"reward model {config.reward_model}",
        "judge_note": judge_note(str(config.reward_model), [*zip(names, config.paths, strict=True)][1:]),
        "baseline": names[0],
        "prompts": "prompts",  # whoever asks knows whether they were held out
    }
    pairings = all_by_scores(
        {row.name: row.scores for row in performances},
        {row.name: identities(row.samples) for row in performances},
        users,
    )
    return {"run": run, "models": models, "pairings": pairings, "samples": responses}
