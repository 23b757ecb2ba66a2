"""The document of a run: what alignment costs, counted from the pretrained model, and labels where they apply."""

import random

from instructrl.evaluation import results
from instructrl.evaluation.contenders import Judgement, Performance
from instructrl.types import Prompt


def performance(name: str, losses: list[float], judgements: list[Judgement]) -> Performance:
    count = len(judgements)
    return Performance(
        name=name,
        texts=[f"{name} {i}" for i in range(count)],
        finished=[True] * count,
        num_tokens=[3] * count,
        judgements=judgements,
        rewards=[0.0] * count,
        kl=None,
        block_losses=losses,
        fact_accuracy=None,
    )


def performances(**losses: float) -> list[Performance]:
    """One with each mean loss over fifty blocks that differ among each other more than the models do."""
    rng = random.Random(0)
    blocks = [rng.gauss(0, 0.2) for _ in range(50)]
    judged = [Judgement(score=float(i % 3)) for i in range(4)]
    return [
        performance(name.replace("_", "-"), [loss + block + rng.gauss(0, 0.005) for block in blocks], judged)
        for name, loss in losses.items()
    ]


def test_the_tax_is_counted_from_the_pretrained_model():
    found = performances(GPT=1.0, SFT=1.5, PPO=1.06, PPO_ptx=1.02)
    start = [loss + 0.03 for loss in found[0].block_losses]
    tax = results.alignment_tax(found, start)
    assert list(tax["tax"]) == ["PPO start", "SFT", "PPO", "PPO-ptx"]
    # Blocks are compared with themselves: the interval is that of the differences, not of the losses.
    for name, expected in (("PPO start", 0.03), ("PPO", 0.06), ("PPO-ptx", 0.02)):
        assert abs(tax["tax"][name]["mean"] - expected) < 0.005
        assert tax["tax"][name]["high"] - tax["tax"][name]["low"] < 0.01
    assert abs(tax["recovered"]["mean"] - 2 / 3) < 0.05
    assert tax["recovered"]["low"] < tax["recovered"]["mean"] < tax["recovered"]["high"]


def test_nothing_is_given_back_of_a_tax_that_is_not_clear():
    found = performances(GPT=1.0, PPO=1.0, PPO_ptx=0.9)
    assert results.alignment_tax(found, found[0].block_losses)["recovered"] is None


def test_a_label_is_a_share_of_the_responses_it_applies_to():
    judged = [
        Judgement(score=0.0, metadata={"fails": i == 0, **({"invents": i == 2} if i > 1 else {})}) for i in range(4)
    ]
    (row,) = results.compare([performance("SFT", [1.0], judged)], [Prompt(text=f"p{i}") for i in range(4)], "SFT")
    assert (row["metadata"]["fails"]["rate"], row["metadata"]["fails"]["total"]) == (0.25, 4)
    assert (row["metadata"]["invents"]["rate"], row["metadata"]["invents"]["total"]) == (0.5, 2)


def test_head_to_head_counts_wins_over_each_other_model():
    prompts = [Prompt(text=f"p{i}") for i in range(3)]
    scores = {"GPT": (0, 0, 0), "SFT": (1, 1, 1), "PPO-ptx": (2, 1, 0)}
    found = [performance(name, [1.0], [Judgement(score=float(x)) for x in row]) for name, row in scores.items()]
    table = results.head_to_head(found, prompts, "PPO-ptx")
    assert table["model"] == "PPO-ptx"
    assert {name: row["rate"] for name, row in table["against"].items()} == {"GPT": 2.5 / 3, "SFT": 0.5}
