"""TRL's PPO trainers and its reward trainer, a batch of each on tiny networks: what they computed, as one line of JSON.

python -m benchmarks.end_to_end.host_runs.trl_ppo ppo|step|reward|arguments

`ppo` runs in an environment with TRL 1.12, the last that has it, `step` in one with TRL 0.11, `reward` in either's or a
later one. tests/integrations holds our trainers of the same shape to what is printed.
"""

import dataclasses
import json
import math
import os
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

WORDS = 22
END, PAD = WORDS, WORDS + 1
_SIZES = {"vocab_size": WORDS + 2, "bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD, "num_labels": 1}
_KINDS: dict[str, tuple[Any, dict[str, int], Any, Any]] = {
    "gpt2": (
        GPT2Config,
        {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        GPT2LMHeadModel,
        GPT2ForSequenceClassification,
    ),
    "llama": (
        LlamaConfig,
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    ),
}
PROMPTS = [[3], [5, 6], [7, 8, 9], [10, 11, 12, 13], [14, 1], [2, 15, 16], [17], [18, 19, 20, 21]]

# What `ppo` is run with, beside `COMMON`.
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": len(PROMPTS),
    "total_episodes": len(PROMPTS),
    "num_ppo_epochs": 2,
    "response_length": 6,
    "learning_rate": 0.05,
    # Adam divides by the size of a gradient: the rounding of one that is nearly 0 would become a whole step.
    "adam_epsilon": 0.1,
    "num_sample_generations": 0,
}
PPO_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "stops": ("gpt2", {"stop_token": "eos"}),
    "conventions": (
        "llama",
        {"stop_token": "eos", "kl_estimator": "k3", "whiten_rewards": True, "missing_eos_penalty": 1.5, "gamma": 0.9,
         "lam": 0.8, "kl_coef": 0.3, "vf_coef": 0.5, "cliprange": 0.05, "cliprange_value": 0.1},
    ),
    "never_stops": ("gpt2", {}),
}  # fmt: skip
# What was sampled for the prompts, by whether a response ends.
SAMPLED = {
    True: [[5, 8, END], [END], [14, 5, 2, 21, 15, 9], [12, 4, 15, 8, 19, END], [2, 16, 2, END], [11, 8, 12, 12, 8, 1],
           [1, 19, END], [2, 2, END]],
    False: [[5, 8, 2, END, 3, 1], [2, 16, 2, 2, 6, 4], [14, 5, 2, 21, 15, 9], [12, 4, 15, 8, 19, 3],
            [6, 13, 2, 2, 21, END], [11, 8, 12, 12, 8, 5], [1, 19, 4, 4, 2, 0], [2, 2, 21, 12, 9, 1]],
}  # fmt: skip
STEP_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("gpt2", {"mini_batch_size": 4}),
    # Of each response the second token does not count.
    "masked": ("gpt2", {"mini_batch_size": 4, "gamma": 0.9, "lam": 0.8, "kl_penalty": "abs"}),
    "accumulated": (
        "llama",
        {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "kl_penalty": "mse", "whiten_rewards": True,
         "score_clip": 0.9, "gamma": 0.9},
    ),
}  # fmt: skip
STEP_COMMON: dict[str, Any] = {"batch_size": 4, "ppo_epochs": 2, "learning_rate": 0.02, "init_kl_coef": 0.2}
QUERIES = PROMPTS[:4]
# Of the same length with their queries: where `whiten_rewards` is on, TRL 0.11 gives padding a reward.
RESPONSES = {
    False: [[1, 4, END], [9, 9, 2, 0, 5], [6, END], [12, 3, 4, 8]],
    True: [[1, 4, 2, 2, 6, END], [9, 9, 2, 0, 5], [6, 7, 8, END], [12, 3, 4]],
}
SCORES = [0.8, -0.6, 1.7, 0.1]
REWARD_CASES: dict[str, dict[str, Any]] = {"plain": {}, "centred": {"center_rewards_coefficient": 0.3}}
PAIRS = {
    "prompt": ["w3 w4", "w5", "w6 w7 w8", "w9"],
    "chosen": [" w1 w2", " w3 w2 w1", " w4", " w5 w5 w6"],
    "rejected": [" w2", " w7 w8", " w9 w1 w2", " w5 w4"],
    "margin": [0.5, 0.0, 1.0, 0.25],
}


def network(kind: str, role: str) -> Any:
    """With weights by a formula, another for each role. role: "policy", "reference", "reward" or "value"."""
    config, shape, lm, classifier = _KINDS[kind]
    found = (lm if role in ("policy", "reference") else classifier)(config(**_SIZES, **shape)).eval()
    filled(found, "policy" if role == "reference" else role, 0.02 if role == "reference" else 0.0)
    return found


@torch.no_grad()
def filled(module: nn.Module, salt: str, change: float = 0.0) -> None:
    for name, parameter in module.named_parameters():
        numbers = waves(parameter.numel(), f"{salt}/{name}")
        numbers = 1 + 0.1 * numbers if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight",
                                                      "layernorm.weight")) else 0.3 * numbers  # fmt: skip
        numbers = numbers + change * waves(parameter.numel(), f"change/{name}")
        parameter.copy_(numbers.view(parameter.shape))


def waves(count: int, salt: str) -> Tensor:
    """Numbers from -1 to 1 without a pattern: [count] float64."""
    places = torch.arange(count, dtype=torch.float64)
    return torch.sin(0.37 * places**2 + zlib.crc32(salt.encode()) % 1000)


def projected(gradients: Iterable[tuple[str, Tensor | None]], count: int = 6) -> list[float]:
    """A gradient's norm, and its products with some vectors: any part that is another one shows in them."""
    found = [(name, torch.zeros(1) if x is None else x.detach().double().flatten()) for name, x in gradients]
    norm = math.sqrt(sum(float(x.square().sum()) for _, x in found))
    return [norm, *(sum(float(x @ waves(len(x), f"{i}/{name}")) for name, x in found) for i in range(count))]


def gradients(module: nn.Module) -> list[tuple[str, Tensor | None]]:
    return [(name, parameter.grad) for name, parameter in module.named_parameters()]


def tokenizer() -> Any:
    """A word an id, with an end and a padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<eos>": END, "<pad>": PAD}
    words: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def _ppo(case: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    steps: list[dict[str, list[float]]] = []
    sampled = SAMPLED["stop_token" in given]

    def batch_generation(model, queries, size, padding, settings):
        """What was sampled, with the logits that it was sampled from."""
        order = [PROMPTS.index([x for x in row if x != PAD]) for row in queries.tolist()]
        rows = [sampled[i] + [PAD] * (COMMON["response_length"] - len(sampled[i])) for i in order]
        tokens = torch.cat([queries, torch.tensor(rows)], dim=1)
        logits = ppo_trainer.forward(model, tokens, padding).logits[:, queries.shape[1] - 1 : -1]
        return tokens, logits / settings.temperature

    ppo_trainer.batch_generation = batch_generation
    words = tokenizer()
    words.padding_side = "left"
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, bf16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False, logging_steps=1, seed=3, **{**COMMON, **given},
        )  # fmt: skip
        networks = {name: network(kind, role) for name, role in (("model", "policy"), ("ref_model", "reference"),
                    ("reward_model", "reward"), ("value_model", "value"))}  # fmt: skip
        rows = Dataset.from_dict({"input_ids": PROMPTS})
        trainer = PPOTrainer(args=config, processing_class=words, train_dataset=rows, eval_dataset=rows, **networks)
        both = {"policy": networks["model"], "value": networks["value_model"]}
        trainer.optimizer.optimizer.register_step_pre_hook(
            lambda *_: steps.append({name: projected(gradients(x)) for name, x in both.items()})
        )
        trainer.train()
    logged = trainer.state.log_history[0]
    names = ("objective/kl", "objective/scores", "objective/rlhf_reward", "loss/policy_avg", "loss/value_avg")
    return {"kind": kind, "given": given, "steps": steps, **{n: logged[n] for n in names}}


def masks_of(responses: list[list[int]]) -> list[Tensor]:
    """All but the second token."""
    return [torch.tensor([int(place != 1) for place in range(len(row))]) for row in responses]


def _step(case: str, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    np.random.permutation = np.arange  # the order of the minibatches, which is theirs by chance
    config = PPOConfig(**{**STEP_COMMON, **given})
    model, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(network(kind, x)) for x in ("policy", "reference")
    )
    filled(model.v_head, "head")
    trainer = PPOTrainer(config, model, reference, tokenizer())
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=0.1)
    trainer.optimizer = trainer.accelerator.prepare(optimizer)
    steps: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(projected(of_both(model))))
    names = ("objective/kl", "objective/kl_coef", "ppo/loss/policy", "ppo/loss/value", "ppo/loss/total",
             "ppo/policy/clipfrac", "ppo/returns/mean", "ppo/returns/var", "ppo/val/var", "ppo/val/vpred",
             "ppo/mean_non_score_reward", "ppo/mean_scores", "ppo/std_scores")  # fmt: skip
    batch = [[torch.tensor(x) for x in rows] for rows in (QUERIES, RESPONSES["whiten_rewards" in given], SCORES)]
    masks = masks_of(RESPONSES[False]) if case == "masked" else None
    stats = [trainer.step(*batch, response_masks=masks) for _ in range(2)]
    found = [{name: float(np.mean(each[name])) for name in names} for each in stats]
    return {"kind": kind, "given": given, "steps": steps, "stats": found}


def of_both(model: Any) -> list[tuple[str, Tensor | None]]:
    """Gradients of a model and of its value head."""
    return [*gradients(model.pretrained_model), *((f"v_head.{name}", x) for name, x in gradients(model.v_head))]


def _reward(given: Mapping[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder, bf16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False, logging_steps=1, max_steps=2, per_device_train_batch_size=4, seed=0,
            learning_rate=0.05, adam_epsilon=0.1, lr_scheduler_type="linear", **given,
        )  # fmt: skip
        model = network("llama", "reward")
        rows = Dataset.from_dict(PAIRS)
        trainer = RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer())
        trainer.create_optimizer()
        steps: list[list[float]] = []
        trainer.optimizer.register_step_pre_hook(lambda *_: steps.append(projected(gradients(model))))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"given": given, "losses": losses, "steps": steps, "columns": sorted(PAIRS)}


def _arguments() -> dict[str, Any]:
    """By class, the names of its arguments with what they are where nothing is said."""
    import trl
    from transformers import TrainingArguments

    kinds = [trl.RewardConfig, TrainingArguments]
    kinds += (
        [trl.PPOConfig]
        if hasattr(trl, "PPOConfig")
        else [__import__("trl.experimental.ppo").experimental.ppo.PPOConfig]
    )
    plain = (bool, int, float, str, type(None))
    found = {kind.__name__: {x.name: x.default for x in dataclasses.fields(kind)} for kind in kinds}
    return {kind: {n: v if isinstance(v, plain) else None for n, v in of.items()} for kind, of in found.items()}


def recorded(trainer: str) -> dict[str, Any]:
    """By case, what TRL computed. trainer: "ppo", "step", "reward" or "arguments"."""
    if trainer == "arguments":
        return _arguments()
    if trainer == "reward":
        return {name: _reward(given) for name, given in REWARD_CASES.items()}
    cases, run = {"ppo": (PPO_CASES, _ppo), "step": (STEP_CASES, _step)}[trainer]
    return {name: run(name, kind, given) for name, (kind, given) in cases.items()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(json.dumps(recorded(sys.argv[1])))
