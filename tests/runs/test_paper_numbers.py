"""The paper's hyperparameters, typed here from its sections, against the named runs that claim them."""

from dataclasses import replace

import pytest

from instructrl.runs.named import RUNS
from instructrl.runs.plan import plan
from instructrl.trainers.settings import PPOConfig

SIZES = ("instructgpt_1_3b", "instructgpt_6b", "instructgpt_175b")

# (field of the recipe, section of the paper, values for 1.3B, 6B and 175B)
BY_SIZE = [
    ("sft.adam.lr", "C.1", (9.65e-6, 9.65e-6, 5.03e-6)),
    ("sft.batch_size", "C.1", (32, 32, 8)),
    ("ppo_start.adam.lr", "C.3", (5e-6, 1.04e-5, 2.45e-6)),
    ("ppo_start.batch_size", "C.3", (32, 32, 8)),
    ("ppo.value_adam.lr", "C.4", (9e-6, 9e-6, 5e-6)),
    ("ppo_ptx.value_adam.lr", "C.4", (9e-6, 9e-6, 5e-6)),
]
# (field of the recipe, section, value for every size)
SHARED = [
    ("limits.max_prompt_tokens", "C: longer prompts are filtered out", 1024),
    ("limits.max_response_tokens", "C: responses up to 1k", 1024),
    ("block_tokens", "C: context of 2k", 2048),
    ("pretraining", "C: models come pretrained", None),
    ("sft.epochs", "C.1", 16),
    ("sft.residual_dropout", "C.1: 0.2, which None is", None),
    ("sft.pretraining_fraction", "C.1", 0.0),
    ("ppo_start.epochs", "C.3", 2),
    ("ppo_start.pretraining_fraction", "C.3", 0.1),
    ("reward_model.adam.lr", "C.2", 9e-6),
    ("reward_model.batch_size", "C.2: distinct prompts", 64),
    ("reward_model.epochs", "C.2", 1),
    ("ppo.ptx_coef", "3.5: PPO is gamma = 0", 0.0),
    ("ppo_ptx.ptx_coef", "C.4", 27.8),
    *[
        (f"{step}.adam.{name}", "C", value)
        for step in ("sft", "ppo_start", "reward_model")
        for name, value in (("beta1", 0.9), ("beta2", 0.95))
    ],
    *[
        (f"{step}.{name}", section, value)
        for step in ("ppo", "ppo_ptx")
        for name, section, value in (
            ("num_episodes", "C.4", 256_000),
            ("rollout_batch", "C.4", 512),
            ("minibatch", "C.4", 64),
            ("num_epochs", "C.4: one inner epoch", 1),
            ("warmup_iterations", "C.4", 10),
            ("kl_coef", "C.4", 0.02),
            ("kl_target", "C.4: constant", None),
            ("discount", "C.4: no discount", 1.0),
            ("cliprange", "C.4", 0.2),
            ("temperature", "C.4", 1.0),
            ("ema_decay", "C.4", 0.992),
            ("ptx_examples_per_episode", "C.4", 8.0),
            ("max_response_tokens", "C: the limit of all responses", None),
            ("policy_adam.beta1", "C", 0.9),
            ("policy_adam.beta2", "C", 0.95),
            ("value_adam.beta1", "C", 0.9),
            ("value_adam.beta2", "C", 0.95),
        )
    ],
]


def field(recipe, path: str):
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize(("path", "section", "values"), BY_SIZE, ids=[row[0] for row in BY_SIZE])
def test_numbers_that_depend_on_the_size(path, section, values):
    assert tuple(field(RUNS[name].config.recipe, path) for name in SIZES) == values, f"paper, {section}"


@pytest.mark.parametrize(("path", "section", "value"), SHARED, ids=[row[0] for row in SHARED])
def test_numbers_of_all_sizes(path, section, value):
    assert [field(RUNS[name].config.recipe, path) for name in SIZES] == [value] * 3, f"paper, {section}"


def test_the_policys_rate_is_one_that_was_tried_and_did_not_diverge():
    """E.9: from 2.55e-6 for 1.3B and 6B, diverging above 8.05e-6 without the mix; 2.55e-6 and 3.74e-6 for 175B."""
    for name in SIZES:
        recipe = RUNS[name].config.recipe
        rate = recipe.ppo.policy_adam.lr
        assert rate == recipe.ppo_ptx.policy_adam.lr
        assert rate in (2.55e-6, 3.74e-6) if name.endswith("175b") else 2.55e-6 <= rate <= 8.05e-6


def test_ppo_and_ppo_ptx_differ_by_the_coefficient_alone():
    for name in SIZES:
        recipe = RUNS[name].config.recipe
        names = [n for n in PPOConfig.__slots__ if getattr(recipe.ppo, n) != getattr(recipe.ppo_ptx, n)]
        assert names == ["ptx_coef"]


def test_a_tenth_of_every_batch_of_the_branch_is_plain_text():
    mixed = [RUNS[name].config.recipe.ppo_start.num_pretraining for name in SIZES]
    # Of 32 and of 8 examples, the nearest whole number to a tenth.
    assert mixed == [3, 3, 1]


@pytest.mark.parametrize("name", SIZES)
def test_the_reward_model_is_6b_for_every_size(name):
    """C.2: so that the runs of other sizes ask what it starts from, and their plans say so."""
    run = RUNS[name]
    paths = {"data": "d", "corpus": "c", "model": "m"}
    (row,) = (row for row in run.plan(run.config) if row.step == "reward_model")
    asked = name != "instructgpt_6b"
    assert row.size.endswith("from --reward-base, a 6B model" if asked else "from the last SFT epoch")
    given = replace(run.config, **paths)
    if asked:
        with pytest.raises(ValueError, match=r"^reward_base: found nothing, this run needs .* and --reward-base$"):
            run.check(given)
    else:
        run.check(given)
    run.check(replace(given, reward_base="six"))
    (row,) = (row for row in run.plan(replace(run.config, reward_base="six")) if row.step == "reward_model")
    assert row.size.endswith("from six")


def test_arithmetic_that_follows():
    """256k episodes in batches of 512 are 500 iterations, of 8 minibatches each; 64 x 8 examples beside a minibatch."""
    ppo = RUNS["instructgpt_1_3b"].config.recipe.ppo_ptx
    assert (ppo.num_iterations, ppo.num_optimizer_steps, ppo.num_ptx_examples) == (500, 4_000, 512)
    assert ppo.num_optimizer_steps * ppo.num_ptx_examples == 2_048_000


@pytest.mark.parametrize("name", RUNS)
def test_every_named_run_can_be_planned(name):
    run = RUNS[name]
    rows = run.plan(run.config)
    expected = ["pretraining", "sft", "ppo_start", "reward_model", "ppo", "ppo_ptx", "evaluation"]
    if name in ("miniature", "smoke"):
        expected[6:6] = ["prompted GPT", "FLAN-like", "T0-like"]
    if name == "chat":
        expected = ["sft", "reward_model", "judge", "ppo", "evaluation"]
    elif run.config.recipe.pretraining is None:
        expected.remove("pretraining")
    assert [row.step for row in rows] == expected
    assert run.description


def test_the_plan_of_the_paper_says_its_numbers():
    # Table 6: 12,725 demonstrations, 33,207 ranked prompts, 31,144 prompts for PPO; table 9: 3,196 test prompts.
    counts = {"demonstrations": 12_725, "comparisons": 33_207, "ppo_prompts": 31_144, "test": 3_196}
    rows = {row.step: row for row in plan(RUNS["instructgpt_1_3b"].config.recipe, counts)}
    # 16 x ceil(12725 / 32), 2 x ceil(12725 / 29), ceil(33207 / 64)
    assert rows["sft"].work == "16 epochs in batches of 32: 6,368 optimiser steps"
    assert rows["ppo_start"].work == "2 epochs in batches of 29: 878 optimiser steps"
    assert rows["ppo_start"].size == "12,725 demonstrations + 3 blocks a batch, 10% of the loss"
    assert rows["reward_model"].work == "1 epoch in batches of 64: 519 optimiser steps"
    assert rows["ppo_ptx"].size == "256,000 episodes over 31,144 prompts + 512 blocks a minibatch"
    assert rows["ppo"].size == "256,000 episodes over 31,144 prompts"
    assert rows["ppo"].work == rows["ppo_ptx"].work == "500 iterations, 4,000 optimiser steps"
    assert rows["evaluation"].size == "3,196 test prompts"


def test_a_plan_without_counts_invents_none():
    rows = {row.step: row for row in plan(RUNS["files"].config.recipe, {})}
    assert rows["sft"].size == "all demonstrations"
    assert rows["sft"].work == "16 epochs in batches of 32"
