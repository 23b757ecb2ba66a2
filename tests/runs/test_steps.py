"""Pieces that runs are made of: disjoint subsets, few-shot prompts, recipes and the seeds of the steps."""

from dataclasses import replace

import pytest
from tiny import demonstrations, tiny_encoder

from instructrl.data.settings import Limits
from instructrl.rollout.randomness import take_disjoint
from instructrl.runs.experiment import few_shot_form
from instructrl.runs.journal import Journal
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig, PPOConfig
from instructrl.types import Demonstration


def test_subsets_are_disjoint_and_of_the_sizes_asked():
    subsets = take_disjoint(20, [5, 0, 12], seed=1)
    assert [len(subset) for subset in subsets] == [5, 0, 12]
    chosen = [row for subset in subsets for row in subset]
    assert len(set(chosen)) == 17
    assert set(chosen) <= set(range(20))


def test_subsets_are_a_function_of_the_seed():
    assert take_disjoint(20, [5, 12], seed=1) == take_disjoint(20, [5, 12], seed=1)
    assert take_disjoint(20, [5, 12], seed=1) != take_disjoint(20, [5, 12], seed=2)
    assert sorted(take_disjoint(9, [9], seed=0)[0]) == list(range(9))


def test_subsets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"sizes: found \[5, 16\], which is 21 in all; accepted are up to 20"):
        take_disjoint(20, [5, 16], seed=0)


EXAMPLES = [
    Demonstration(prompt="w1 w2 w3 w4", completion="w5 w6"),  # 6 tokens
    Demonstration(prompt="w7", completion="w8"),  # 2 tokens, the shortest
    Demonstration(prompt="w9 w9", completion="w10"),  # 3 tokens
]


@pytest.mark.parametrize(
    ("prompt_tokens", "expected"),
    [
        (1, "w7\nw8\n\nw9 w9\nw10\n\nw1 w2 w3 w4\nw5 w6\n\n{}\n"),  # 2 + 3 + 6 + 1 = 12 fit
        (2, "w7\nw8\n\nw9 w9\nw10\n\n{}\n"),  # 13 would not
        (7, "w7\nw8\n\nw9 w9\nw10\n\n{}\n"),
        (8, "w7\nw8\n\n{}\n"),
        (10, "w7\nw8\n\n{}\n"),
        (11, "{}"),
        (12, "{}"),
    ],
)
def test_few_shot_prompts_hold_the_shortest_examples_that_fit(prompt_tokens, expected):
    encoder = tiny_encoder(max_prompt_tokens=12)
    prompt = " ".join(["w0"] * prompt_tokens)
    text = few_shot_form(EXAMPLES, encoder)(prompt)
    assert text == expected.format(prompt)
    assert len(encoder.prompt(text)) <= 12


def test_few_shot_prompts_take_the_number_of_examples_asked():
    form = few_shot_form(demonstrations(50), tiny_encoder(max_prompt_tokens=1000), num_examples=5)
    assert form("w0").count("\n\n") == 5


def test_a_recipe_keeps_responses_within_its_limit():
    with pytest.raises(ValueError, match=r"ppo_ptx\.max_response_tokens: found 65, accepted are up to .* 64"):
        Recipe(
            limits=Limits(max_response_tokens=64),
            ppo=PPOConfig(max_response_tokens=64),
            ppo_ptx=PPOConfig(max_response_tokens=65, ptx_coef=1.0),
        )


def test_a_recipes_ppo_has_no_mix():
    with pytest.raises(ValueError, match=r"ppo\.ptx_coef: found 1\.0, accepted is 0"):
        replace(Recipe(), ppo=PPOConfig(ptx_coef=1.0))


def test_every_step_has_its_own_seed(tmp_path):
    def seeds(seed: int) -> list[int]:
        log = RunLog(None)
        work = Workspace(
            folder=tmp_path,
            log=log,
            encoder=tiny_encoder(),
            recipe=Recipe(),
            seed=seed,
            config={},
            journal=Journal(tmp_path, log, CheckpointConfig()),
        )
        return [work.seed_for(step) for step in ("sft", "ppo_start", "ppo", "pp", "opp", "reward_model")]

    assert len({*seeds(0), *seeds(1)}) == 12
    assert seeds(0) == seeds(0)
