"""The studies of the paper's appendix E, and two more, as a table. Values are multiples of the base run's.

The paper's grids are scaled: where it tries 0.05 times and 100 times its own coefficient, so does a study with that of
the run. What came out on validation prompts is shown; test prompts are not touched.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from instructrl.runs.settings import MiniatureConfig
from instructrl.runs.studies.points import GPT, START, Point, Study, at

NUM_FOLDS = 5
_MIX = {"ppo": "without the mix", "ppo_ptx": "with the mix"}
_GOLD = {"gold": "Gold score, 1 to 7", "likert": "Likert, 1 to 7", "win_rate": "Win rate against SFT"}
_REWARD = {"reward": "Validation reward"}
_KL = {"kl": "KL from the start, nats a response"}
_TEXT = {"corpus_loss": "Loss on plain text, nats a token"}
_EXAMS = {"reading": "Reading (as SQuADv2), F1", "counting": "Counting (as DROP), F1"}


def _multiples(config: MiniatureConfig, name: str, factors: Iterable[float], *, phase: str, **more: Any) -> list[Point]:
    """Points of one line, on which the value of a setting of `phase` is a multiple of the base run's."""
    base = at(config.recipe, f"{phase}.{name}")
    series = more.pop("series", _MIX[phase])
    return [
        Point(
            label=f"{factor:g} x",
            series=series,
            x=base * factor,
            settings=() if factor == 1 else ((f"{phase}.{name}", base * factor),),
            phase=phase,
            **more,
        )
        for factor in factors
    ]


def _ptx(config: MiniatureConfig) -> list[Point]:
    """0 is PPO itself, which the run has; both share prompts and seed."""
    mixed = _multiples(config, "ptx_coef", (0.03, 0.1, 0.3, 1, 3), phase="ppo_ptx")
    return [Point(label="0 x", series=_MIX["ppo_ptx"], x=0.0, phase="ppo"), *mixed]


def _kl_remedy(config: MiniatureConfig) -> list[Point]:
    """The paper's 1e-4 to 2 are 0.005 to 100 times its coefficient."""
    factors = (0.005, 0.05, 0.5, 1, 5, 20, 100)
    return [
        point
        for reference in (START, GPT)
        for point in _multiples(
            config, "kl_coef", factors, phase="ppo", reference=reference, series=f"reference: {reference}"
        )
    ]


def _length(config: MiniatureConfig) -> list[Point]:
    total = 2 * config.recipe.ppo_ptx.num_iterations
    keep = tuple(sorted({max(round(total / 2**power), 1) for power in range(7)} - {total}))
    episodes = total * config.recipe.ppo_ptx.rollout_batch
    settings = (("ppo_ptx.num_episodes", episodes),)
    return [Point(label="2 x", series=_MIX["ppo_ptx"], x=float(episodes), settings=settings, keep=keep)]


def _kl(config: MiniatureConfig) -> list[Point]:
    """The paper's 0, .001, .01, .03, .1, 1 and 2, beside its .02."""
    return _multiples(config, "kl_coef", (0, 0.05, 0.5, 1, 1.5, 5, 50, 100), phase="ppo_ptx")


def _over_optimisation(config: MiniatureConfig) -> list[Point]:
    return [
        Point(
            label=f"beta {beta:g}",
            series=_MIX["ppo"],
            x=beta,
            settings=() if beta == config.recipe.ppo.kl_coef else (("ppo.kl_coef", beta),),
            phase="ppo",
        )
        for beta in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]


def _initial_mix(config: MiniatureConfig) -> list[Point]:
    """The paper's 2 epochs are the base run's, its 1 is half of them."""
    most = config.recipe.ppo_start.epochs
    base = (config.recipe.ppo_start.pretraining_fraction, most)
    return [
        Point(
            label=f"{fraction:.0%}, {epochs} epochs",
            series=f"{epochs} epochs",
            x=fraction,
            settings=()
            if (fraction, epochs) == base
            else (("ppo_start.pretraining_fraction", fraction), ("ppo_start.epochs", epochs)),
            first="ppo" if (fraction, epochs) == base else "ppo_start",
        )
        for epochs in dict.fromkeys((max(most // 2, 1), most))
        for fraction in (0.0, 0.1, 0.5)
    ]


def _learning_rate(config: MiniatureConfig) -> list[Point]:
    """The paper's 2.55e-6 to 2.55e-5, log-linear about 8.05e-6, and as far again, where our small models diverge."""
    factors = (0.32, 0.56, 1, 1.78, 3.16, 10, 31.6)
    return [p for phase in _MIX for p in _multiples(config, "policy_adam.lr", factors, phase=phase)]


def _batch(config: MiniatureConfig) -> list[Point]:
    """The paper's ratios 4, 8 and 32, batches of 128 to 1024 (its own is 512), minibatches of 8 to 64."""
    ppo, ratio = config.recipe.ppo_ptx, "ppo_ptx.ptx_examples_per_episode"
    points = [
        Point(
            label=f"{8 * factor:g} as in the paper",
            series="pretraining examples an episode",
            x=factor,
            settings=() if factor == 1 else ((ratio, ppo.ptx_examples_per_episode * factor),),
        )
        for factor in (0.5, 1, 4)
    ]
    for factor in (0.25, 0.5, 2):
        batch = round(ppo.rollout_batch * factor)
        minibatch = min(ppo.minibatch, batch)
        settings = (
            ("ppo_ptx.minibatch", minibatch),
            ("ppo_ptx.num_episodes", max(ppo.num_episodes // batch, 1) * batch),
            ("ppo_ptx.rollout_batch", batch),
        )
        points.append(Point(label=f"batch {batch}", series="rollout batch", x=factor, settings=settings))
    for factor in (0.125, 0.25, 0.5):
        size = max(round(ppo.minibatch * factor), 1)
        changed = (("ppo_ptx.minibatch", size),)
        points.append(Point(label=f"minibatch {size}", series="minibatch", x=factor, settings=changed))
    return points


def _folds(config: MiniatureConfig) -> list[Point]:
    return [
        Point(label=f"without group {fold + 1}", series="folds", x=float(fold + 1), fold=fold, first="reward_model")
        for fold in range(NUM_FOLDS)
    ]


def _pairs_as_rows(config: MiniatureConfig) -> list[Point]:
    """With as many optimiser steps, and with as many rows in a step: there, ties aside, K(K - 1)/2 times the steps."""
    low, high = config.amounts.completions
    pairs = [k * (k - 1) // 2 for k in range(low, high + 1)]
    size = config.recipe.reward_model.batch_size
    alone = (("reward_model.pairs_as_rows", True),)
    many = (*alone, ("reward_model.batch_size", round(size * sum(pairs) / len(pairs))))
    return [
        Point(label="prompts as rows", series="prompts as rows", x=1.0, first="reward_model"),
        Point(label="as many steps", series="pairs, as many steps", x=1.0, settings=many, first="reward_model"),
        Point(label="as many rows", series="pairs, as many rows a step", x=1.0, settings=alone, first="reward_model"),
    ]


STUDIES: Mapping[str, Study] = {
    "labelers": Study(
        title="Reward models on labelers that they have not seen",
        paper="E.2",
        what="Reward models learn from four of five groups of labelers. Each is measured on held-out prompts of its "
        "own groups, and on the fifth.",
        points=_folds,
        x_label="group left out",
        shown={"held_in": "Accuracy, own groups", "held_out": "Accuracy, group left out"},
        kind="folds",
        log_x=False,
        seeds=3,
    ),
    "ptx": Study(
        title="The coefficient of the pretraining mix",
        paper="E.6, figure 33",
        what="PPO-ptx with multiples of the run's coefficient; 0 is PPO.",
        points=_ptx,
        x_label="ptx_coef",
        shown={**_EXAMS, **_TEXT, **_REWARD, **_GOLD, **_KL},
    ),
    "kl_remedy": Study(
        title="A KL penalty in place of the mix",
        paper="E.6, figure 34",
        what="PPO without the mix, with ever more KL penalty, from the start and from GPT.",
        points=_kl_remedy,
        x_label="kl_coef",
        shown={**_EXAMS, **_TEXT, **_REWARD, **_GOLD, **_KL},
    ),
    "length": Study(
        title="Twice as long",
        paper="E.6, figure 35",
        what="PPO-ptx for twice the episodes; the averaged policy is measured on the way.",
        points=_length,
        x_label="episodes",
        shown={**_EXAMS, **_TEXT, **_REWARD, **_GOLD, **_KL},
    ),
    "kl": Study(
        title="The KL coefficient",
        paper="E.7, figure 36",
        what="PPO-ptx with multiples of the run's KL coefficient.",
        points=_kl,
        x_label="kl_coef",
        shown={**_GOLD, **_REWARD, **_KL, **_TEXT, **_EXAMS},
    ),
    "initial_mix": Study(
        title="The mix before PPO",
        paper="E.8, figure 37",
        what="The model that PPO starts from, with other shares of pretraining text and half the epochs.",
        points=_initial_mix,
        x_label="share of pretraining text",
        shown={**_GOLD, **_REWARD, **_KL, **_TEXT, **_EXAMS},
        log_x=False,
    ),
    "learning_rate": Study(
        title="The policy's learning rate",
        paper="E.9, figure 38",
        what="PPO and PPO-ptx with multiples of the run's learning rate. Those that diverge are rows too.",
        points=_learning_rate,
        x_label="learning rate",
        shown={**_GOLD, **_REWARD, **_KL, **_TEXT, **_EXAMS},
    ),
    "batch": Study(
        title="Ratio of the mix, batches and minibatches",
        paper="E.11",
        what="PPO-ptx with more and less plain text beside each episode, and with other batches.",
        points=_batch,
        x_label="multiple of the run's own",
        shown={**_GOLD, **_REWARD, **_TEXT, **_KL, **_EXAMS},
    ),
    "pairs_as_rows": Study(
        title="Pairs as rows of their own",
        paper="footnote 5",
        what="One pass over the comparisons, with all pairs of a prompt in one batch, and with each pair as a row.",
        points=_pairs_as_rows,
        x_label="share of the pass",
        shown={"loss": "Validation loss", "accuracy": "Validation accuracy", "training_loss": "Training loss"},
        kind="passes",
        log_x=False,
    ),
    "over_optimisation": Study(
        title="What the reward model sees, and what the rubric sees",
        paper="E.7; figure 1 of Stiennon et al.",
        what="PPO without the mix under less and less KL penalty: reward and gold score over the distance travelled.",
        points=_over_optimisation,
        x_label="kl_coef",
        shown={**_REWARD, **_GOLD, **_TEXT},
        against="sqrt_kl",
        log_x=False,
    ),
}
