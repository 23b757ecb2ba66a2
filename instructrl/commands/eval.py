"""`instructrl eval`: models side by side on the same prompts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from instructrl.commands import options
from instructrl.data.encoding import Limits
from instructrl.data.readers import read_prompts
from instructrl.evaluation.statistics import mean_interval, outcomes_from_scores, win_rate
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.rollout.scoring import score_texts
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import open_workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCommand:
    """Win rates against a baseline, judged by a reward model."""

    # the baseline: a transformers folder or name
    baseline: str
    # models to compare with it: folders or names with the same tokenizer
    models: tuple[str, ...]
    # the judge: a folder that `instructrl rm` wrote
    reward_model: str
    # prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for results.json and the responses
    out: str
    # of everything sampled
    seed: int = 0
    # of the sampled responses
    temperature: float = 1.0
    # of prompts and responses, in tokens
    limits: Limits = Limits()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl eval`. Returns the exit code."""
    config = options.parse(EvalCommand, arguments, program="instructrl eval", description="Compare models on prompts.")
    recipe = Recipe(limits=config.limits)
    work, baseline = open_workspace(Path(config.out), config.baseline, recipe, config.seed, asdict(config))
    judge = RewardModel.load(config.reward_model).eval()
    prompts = list(read_prompts(config.data))
    texts, users = [prompt.text for prompt in prompts], [prompt.user for prompt in prompts]
    sampling = Sampling(
        seed=config.seed, temperature=config.temperature, max_response_tokens=config.limits.max_response_tokens
    )
    reference, rows = None, []
    for name in (config.baseline, *config.models):
        policy = baseline if reference is None else Policy.load(name)
        with work.log.phase(name, 1, "responses") as progress:
            samples = sample_texts(policy.eval(), work.encoder, texts, sampling)
            scores = score_texts(judge, work.encoder, texts, samples.texts, samples.finished).tolist()
            progress.advance(units=len(texts))
        reference = scores if reference is None else reference
        rate = win_rate(outcomes_from_scores(scores, reference), users)
        rows.append({"model": name, "win_rate": asdict(rate), "score": asdict(mean_interval(scores))})
    (work.folder / "results.json").write_text(json.dumps({"models": rows}, indent=1) + "\n", encoding="utf-8")
    table = Table("model", "win rate", "95% interval", "score")
    for row in rows:
        rate = row["win_rate"]
        interval = f"{rate['low']:.1%} to {rate['high']:.1%}"
        table.add_row(row["model"], f"{rate['rate']:.1%}", interval, f"{row['score']['mean']:+.3f}")
    Console().print(table)
    return 0
