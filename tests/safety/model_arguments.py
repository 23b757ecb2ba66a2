"""Every place on the command line that takes a model or a tokenizer, and a command that gets as far as loading it."""

from pathlib import Path

SMALL = ("--limits.max-prompt-tokens", "14", "--limits.max-response-tokens", "10")
SMALL_RECIPE = (
    *("--recipe.limits.max-prompt-tokens", "14", "--recipe.limits.max-response-tokens", "10"),
    *("--recipe.block-tokens", "16"),
)
# `run files` with next to no steps.
TINY_RUN = (
    *SMALL_RECIPE,
    *("--recipe.sft.epochs", "1", "--recipe.ppo-start.epochs", "1", "--test-prompts", "7"),
    *(
        part
        for phase in ("ppo", "ppo-ptx")
        for name, size in {"num-episodes": 8, "rollout-batch": 4, "minibatch": 4, "max-response-tokens": 4}.items()
        for part in (f"--recipe.{phase}.{name}", str(size))
    ),
)
POLICY_PLACES = (
    "sft --model",
    "rm --model",
    "ppo --model",
    "eval --baseline",
    "eval --models",
    "run files --model",
    "run files --reward-base",
    "run chat --model",
)
REWARD_PLACES = ("ppo --reward-model", "eval --reward-model")
TOKENIZER_PLACES = ("data prepare --tokenizer", "run public --model")


def arguments(place: str, model: Path, good: Path) -> list[str]:
    """The command with `model` in this place and what is good in every other. good: the fixture of this name."""
    data, policy, reward = good / "data", good / "policy", good / "reward"
    files = ("--data", data, "--corpus", data / "corpus.jsonl", *SMALL_RECIPE)
    options = {
        "sft": {"--model": policy, "--data": data / "demonstrations.train.jsonl",
                "--validation": data / "demonstrations.valid.jsonl"},
        "rm": {"--model": policy, "--data": data / "comparisons.train.jsonl",
               "--demonstrations": data / "demonstrations.train.jsonl"},
        "ppo": {"--model": policy, "--reward-model": reward, "--data": data / "prompts.train.jsonl"},
        "eval": {"--baseline": policy, "--models": data / ".." / "policy", "--reward-model": reward,
                 "--data": data / "prompts.test.jsonl"},
        "run files": {"--model": policy},
        "run public": {},
        "run chat": {"--chat-template": "none", "--recipe.ppo.max-response-tokens": "8"},
        "data prepare": {"--prompts": data / "prompts.train.jsonl"},
    }  # fmt: skip
    command, option = place.rsplit(" ", 1)
    ours = {"run files": files, "run chat": SMALL_RECIPE}
    more = ours.get(command, () if command.startswith(("run", "data")) else SMALL)
    pairs = {**options[command], option: model}
    return [*command.split(), *(str(part) for pair in pairs.items() for part in pair), *map(str, more), "--out", "out"]
