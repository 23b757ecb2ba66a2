"""`instructrl eval`: models side by side on the same prompts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console

from instructrl import distributed, durable
from instructrl.commands.settings import EvalCommand
from instructrl.commands.tracked import tracked
from instructrl.data.readers import holds_comparisons
from instructrl.evaluation.contenders import PORTION
from instructrl.evaluation.results import identities, versions
from instructrl.evaluation.statistics import outcomes_from_scores, win_rate
from instructrl.evaluation.table import results_table
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import spread_for_use
from instructrl.rollout.generate import Samples, Sampling, sample_texts
from instructrl.rollout.scoring import score_texts
from instructrl.runs.judging import judge_note, short_names
from instructrl.runs.portions import Portions
from instructrl.runs.reading import Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_judge, load_other_policy, load_start, open_workspace
from instructrl.runs.steps import Workspace
from instructrl.tracking.masking import masked_values
from instructrl.types import Prompt


def main(config: EvalCommand) -> int:
    """Carry out `instructrl eval`. Returns the exit code."""
    recipe = Recipe(limits=config.limits)
    encoder, baseline = load_start(config.baseline, recipe, config)
    judge = load_judge(config.reward_model, encoder).eval()
    spread_for_use(judge, config.weights)
    for path in config.models:
        load_other_policy(path, encoder)  # one at a time in memory, so that all are known to be good before any is used
    reader = Reader(encoder, config.long_prompts)
    prompts = list(reader.prompts(config.data))
    texts = [prompt.text for prompt in prompts]
    work = open_workspace(reader, recipe, config)
    sampling = Sampling(
        seed=config.seed,
        temperature=config.temperature,
        truncation=config.sampling,
        max_response_tokens=config.limits.max_response_tokens,
    )
    if holds_comparisons(config.data):
        work.log.warn(
            f"{config.data}: found comparisons, whose prompts alone are used; a judge that was trained on them scores "
            "them too well"
        )
    with tracked(config.track, work.log, work.folder, config) as tracker:
        performances = []
        paths = (config.baseline, *config.models)
        for number, (path, name) in enumerate(zip(paths, short_names(paths), strict=True)):
            policy = (baseline if number == 0 else Policy.load(path, encoder.tokenizer)).eval()
            spread_for_use(policy, config.weights)
            performances.append((name, *_performance(work, number, name, policy, judge, texts, sampling)))
        results = _results(config, prompts, performances)
        if distributed.is_main():
            durable.write_text(work.folder / "results.json", json.dumps(results, indent=1) + "\n")
        tracker.after_results(results)
    Console().print(results_table(results))
    return 0


def _performance(
    work: Workspace,
    number: int,
    name: str,
    policy: Policy,
    judge: RewardModel,
    texts: Sequence[str],
    sampling: Sampling,
) -> tuple[Samples, list[float]]:
    """Responses and their scores, in portions of which each is done once. number: of the model among all."""
    portions = Portions(work.folder, work.log, f"{number:02d}", policy, judge, texts, sampling, work.rendering)
    found: dict[str, list] = {"texts": [], "finished": [], "scores": []}

    def answers(start: int) -> dict[str, list]:
        some = texts[start : start + PORTION]
        samples = sample_texts(policy, work.encoder, some, sampling, first_episode=start)
        scores = score_texts(judge, work.encoder, some, samples.texts, samples.finished).tolist()
        return {**asdict(samples), "scores": scores}

    with work.log.phase(name, len(texts), "responses") as progress:
        for start in range(0, len(texts), PORTION):
            portion = portions.once(f"{start:06d}", partial(answers, start))
            for field, rows in portion.items():
                found[field] += rows
            progress.advance(len(portion["texts"]), units=len(portion["texts"]))
    return Samples(texts=found["texts"], finished=found["finished"]), found["scores"]


def _results(
    config: EvalCommand, prompts: Sequence[Prompt], performances: Sequence[tuple[str, Samples, list[float]]]
) -> dict[str, Any]:
    """What `instructrl report` reads. performances: (model, responses, scores), the baseline's first."""
    users = [prompt.user for prompt in prompts]
    names, paths = [name for name, *_ in performances], (config.baseline, *config.models)
    _, first, reference = performances[0]
    same = {
        name: [a == b for a, b in zip(identities(samples), identities(first), strict=True)]
        for name, samples, _ in performances
    }
    models = [
        {
            "name": name,
            "path": path,
            "win_rate": asdict(win_rate(outcomes_from_scores(scores, reference, same[name]), users)),
            "score": sum(scores) / len(scores),
            "finished": sum(samples.finished) / len(prompts),
        }
        for path, (name, samples, scores) in zip(paths, performances, strict=True)
    ]
    responses = [
        {
            "prompt": prompt.text,
            "category": prompt.category,
            "responses": {
                name: {"text": samples.texts[i], "likert": None, "score": scores[i]}
                for name, samples, scores in performances
            },
        }
        for i, prompt in enumerate(prompts)
    ]
    run = {
        "name": "eval",
        "seed": config.seed,
        "description": f"models compared on {len(prompts)} prompts",
        "judge": f"reward model {config.reward_model}",
        "judge_note": judge_note(config.reward_model, [*zip(names, paths, strict=True)][1:]),
        "baseline": names[0],
        "prompts": "prompts",  # whoever asks knows whether they were held out
    }
    told = {"run": run, "models": models, "config": asdict(config)}
    return {**masked_values(told), "samples": responses, "versions": versions()}
