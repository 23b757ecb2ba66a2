"""A synthetic run folder: every part that a report can have, from a seed."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MODELS = ("GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx")
CATEGORIES = ("generation", "open_qa", "brainstorming", "chat", "rewrite", "classification")
FLAGS = ("fails_instruction", "inappropriate", "hallucination", "satisfies_constraint", "harmful_advice")
HOSTILE = "</script></style></svg><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}<a href='javascript:x'>"


def _interval(rate: float, half: float, **more) -> dict:
    return {"rate": rate, "low": rate - half, "high": rate + half, **more}


def _mean(mean: float, half: float) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _win(rate: float, half: float, num_prompts: int) -> dict:
    record = _interval(rate, half, standard_error=half / 1.96, num_prompts=num_prompts)
    return record | {"bootstrap_low": rate - 1.3 * half, "bootstrap_high": rate + 1.25 * half}


RATES = dict(zip(MODELS, (0.126, 0.304, 0.5, 0.544, 0.517), strict=True))
LOSSES = dict(zip(MODELS, (0.921, 0.921, 1.269, 1.237, 0.938), strict=True))
FACTS = dict(zip(MODELS, (0.81, 0.81, 0.66, 0.58, 0.79), strict=True))


def _model(index: int, name: str, rng: np.random.Generator) -> dict:
    by_category = {c: _win(float(np.clip(RATES[name] + rng.normal(0, 0.06), 0.06, 0.9)), 0.05, 170) for c in CATEGORIES}
    return {
        "name": name,
        "win_rate": _win(RATES[name], 0.022, 1000),
        "win_rate_by_category": by_category,
        "length_controlled": _interval(RATES[name] + 0.02 * index - 0.03, 0.03, num_prompts=1000),
        "likert": {"mean": 2.1 + 0.8 * index, "low": 2.0 + 0.8 * index, "high": 2.2 + 0.8 * index},
        "metadata": {flag: _interval(0.45 - 0.09 * index + 0.01 * i, 0.015, total=143) for i, flag in enumerate(FLAGS)},
        "score": -1.52 + 0.6 * index,
        "kl": 14.2 if name == "PPO" else 11.8 if name == "PPO-ptx" else None,
        "corpus_loss": LOSSES[name],
        "fact_accuracy": FACTS[name],
        "response_tokens": 31.4 - 2 * index,
        "finished": 0.61 + 0.09 * index,
    }


def _suites() -> list[dict]:
    """A set that the paper has and one that it has not, with groups and what is left out."""
    rows = []
    for model, shift in (("GPT", 0.0), ("PPO", 0.2)):
        about = {"model": model, "shots": 0, "unit": "share", "num_left_out": 3}
        for prompt in ("QA", "instruction"):
            for group, num_items in (("", 814), ("not adversarial", 380)):
                value = {"value": 0.3 + shift, "low": 0.27 + shift, "high": 0.33 + shift, "num_items": num_items}
                rows.append({**about, "prompt": prompt, "metric": "true (own judge)", "group": group, **value})
    nothing = {"model": HOSTILE, "prompt": HOSTILE, "shots": 2, "metric": HOSTILE, "group": "", "unit": "points",
               "value": None, "low": None, "high": None, "num_items": 0, "num_left_out": 9}  # fmt: skip
    return [
        {"suite": "truthfulqa", "title": "TruthfulQA", "what": "true answers", "notes": [HOSTILE], "rows": rows},
        {"suite": HOSTILE, "title": HOSTILE, "what": HOSTILE, "notes": [], "rows": [nothing]},
    ]


def _pairings() -> dict:
    rates = [
        [None if i == j else _interval(0.5 + 0.07 * (i - j), 0.03, num_pairs=1000) for j in range(5)] for i in range(5)
    ]
    ratings = [
        {"model": name, "rating": 880.0 + 60 * i, "low": 868.0 + 60 * i, "high": 893.0 + 60 * i, "num_games": 4000}
        for i, name in enumerate(MODELS)
    ]
    return {"win_rate_matrix": {"models": list(MODELS), "rates": rates}, "ratings": ratings}


def _baselines() -> dict:
    """Two mixtures at two learning rates, which gain little after the third checkpoint; and prefixes."""
    found = {}
    for shift, name in ((0.0, "FLAN-like"), (0.1, "T0-like")):
        rows = [
            {"name": f"{name} {lr} {n}", "lr": lr, "epoch": 1, "examples": 128 * n, "validation_loss": None,
             "score": (score := shift - 1.2 + 0.6 * (1 - 0.4**n) - 300 * lr), "low": score - 0.1, "high": score + 0.1}
            for lr in (4e-4, 6e-4) for n in range(1, 8)
        ]  # fmt: skip
        found[name] = [{**row, "selected": i == 6} for i, row in enumerate(rows)]
    prefixes = [
        {"prefix": "an instruction", "text": "please answer . {prompt}", "score": -1.3, "low": -1.4, "high": -1.2},
        {"prefix": HOSTILE, "text": HOSTILE, "score": -0.9, "low": -1.0, "high": -0.8},
    ]
    return {"prefixes": [{**row, "selected": i == 1} for i, row in enumerate(prefixes)], **found}


def _over_optimisation() -> list[dict]:
    kl = np.linspace(0, 14, 12)
    return [
        {"model": name, "iteration": 5 * i, "kl": float(x * s), "score": float(2.2 * np.sqrt(x * s / 14)),
         "gold": float(3.9 + 0.32 * x * s - 0.021 * (x * s) ** 2), "score_error": 0.03, "gold_error": 0.03}
        for name, s in (("PPO", 1.0), ("PPO-ptx", 0.82)) for i, x in enumerate(kl)
    ]  # fmt: skip


def _samples() -> list[dict]:
    texts = ["apple, pear, plum, quince", "I am not sure.\nBut maybe\n\tindented", HOSTILE, "", "word " * 150]
    return [
        {
            "prompt": f"Name {n + 2} fruits, separated by commas."
            if n != 1
            else "Summarise:\n" + HOSTILE + "\nin a line.",
            "category": CATEGORIES[n % 6],
            "responses": {
                m: {"text": texts[(n + i) % 5], "likert": float(1 + (n + i) % 7), "score": 0.3 * i - 0.7}
                for i, m in enumerate(MODELS)
            },
        }
        for n in range(6)
    ]


def _sizes() -> list[dict]:
    return [
        {"set": name, "split": split, "source": source, "num_prompts": n}
        for name, split, source, n in (
            ("SFT", "train", "labeler", 11295), ("SFT", "train", "customer", 1430),
            ("SFT", "valid", "labeler", 1550), ("SFT", "valid", "customer", 103),
            ("RM", "train", "labeler", 6623), ("RM", "train", "customer", 26584),
            ("RM", "valid", "labeler", 3488), ("RM", "valid", "customer", 14399),
            ("PPO", "train", "customer", 31144), ("PPO", "valid", "customer", 16185),
        )
    ]  # fmt: skip


def _lengths() -> list[dict]:
    return [
        dict(zip(("set", "split", "count", "mean", "std", "min", "p25", "p50", "p75", "max"), row, strict=True))
        for row in (
            ("SFT", "train", 12725, 408, 433, 1, 37, 283, 632, 2048),
            ("RM", "train", 33207, 199, 334, 1, 20, 64, 203, 2032),
            ("PPO", "train", 31144, 166, 278, 2, 19, 62, 179, 2044),
        )
    ]


def make_results() -> dict:
    rng = np.random.default_rng(3)
    return {
        "run": {"name": "miniature", "seed": 0, "judge": "training labelers", "baseline": "SFT",
                "prompts": "held-out prompts",
                "description": "The whole pipeline on a generated world: corpus, users, labelers and a rubric."},
        "models": [_model(index, name, rng) for index, name in enumerate(MODELS)],
        **_pairings(),
        "reward_model": {
            "accuracy_training_labelers": _interval(0.712, 0.011, num_pairs=6021),
            "accuracy_heldout_labelers": _interval(0.698, 0.013, num_pairs=4410),
            "agreement_training_labelers": _interval(0.768, 0.010, num_pairs=6021),
            "agreement_heldout_labelers": _interval(0.773, 0.012, num_pairs=4410),
            "num_comparisons": 6000, "num_pairs": 28110, "tied_fraction": 0.183, "bias": -0.412,
            "mean_demonstration_score": 0.0,
        },
        "alignment_tax": {
            "pretrained": "GPT", "losses": LOSSES, "num_blocks": 380,
            "tax": {k: _mean(v - LOSSES["GPT"], 0.004) for k, v in LOSSES.items() if v != LOSSES["GPT"]},
            "recovered": _mean(1 - (LOSSES["PPO-ptx"] - LOSSES["GPT"]) / (LOSSES["PPO"] - LOSSES["GPT"]), 0.05),
            "facts": FACTS,
        },
        "over_optimisation": _over_optimisation(),
        "sft_selection": [
            {"epoch": e, "score": s, "validation_loss": v, "selected": e == 4}
            for e, s, v in ((1, -0.9, 1.31), (2, -0.4, 1.12), (3, -0.21, 1.15), (4, -0.12, 1.21))
        ],
        "baselines": _baselines(),
        "samples": _samples(),
        "data": {"sizes": _sizes(), "lengths": _lengths(), "hygiene": [
            {"step": "cap of 200 prompts a user", "removed": 1210, "left": 48012},
            {"step": "shared long prefix", "removed": 3907, "left": 44105,
             "reasons": {"common prefix": 3000, "repeated": 907}},
            {"step": "personal data", "removed": 311, "left": 43794}],
            "overlap": [{"what": "word for word in the corpus", "count": 41, "total": 1000}]},
        "config": {"seed": 0, "model": {"width": 128, "layers": 2}, "ppo": {"kl_coef": 0.02, "betas": [0.9, 0.95],
                   "missing_eos_score": None, "batch_size": 256}},
        "suites": _suites(),
        "versions": {"instructrl": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
    }  # fmt: skip


def make_metrics() -> list[dict]:
    rng = np.random.default_rng(5)
    rows = []
    for phase, steps in (("pretraining", 800), ("sft", 120), ("ppo_start", 60)):
        for step in range(steps):
            loss = 0.95 + 3.4 * float(np.exp(-step / (steps / 7))) + float(rng.normal(0, 0.05))
            row = {"phase": phase, "step": step, "loss": loss, "lr": 1e-3}
            rows.append(row | ({"validation_loss": loss + 0.08} if step % (steps // 6) == 0 else {}))
    for step in range(300):
        accuracy = 0.5 + 0.22 * (1 - float(np.exp(-step / 60)))
        row = {"phase": "reward_model", "step": step, "loss": 0.69 - 0.5 * (accuracy - 0.5), "lr": 1e-3}
        row["accuracy"] = accuracy + float(rng.normal(0, 0.03))
        rows.append(row | ({"validation_accuracy": accuracy - 0.02} if step % 50 == 0 else {}))
    for phase, speed in (("ppo", 1.0), ("ppo_ptx", 0.82)):
        for step in range(45):
            x = speed * step / 45
            row = {"phase": phase, "step": step, "score": 2.2 * x**0.5 + float(rng.normal(0, 0.08)), "kl": 14 * x,
                   "kl_coef": 0.02, "entropy": 2.4 - x, "clip_fraction": 0.05 + 0.02 * x, "policy_loss": -0.01 * x,
                   "value_loss": 0.4 - 0.2 * x, "finished": 0.9 + 0.09 * x, "response_tokens": 24 + 3 * x, "lr": 1e-4,
                   "gradient_norm": 1.1 - x / 3}  # fmt: skip
            rows.append(row | ({"ptx_loss": 0.96 - 0.02 * x} if phase == "ppo_ptx" else {}))
    return rows


def make_profile() -> list[dict]:
    rows = [{"phase": "pretraining", "seconds": 32.0, "tokens": 1_250_000} for _ in range(2)]
    rows += [{"phase": "sft", "seconds": 1.2, "tokens": 48_000}, {"phase": "reward_model", "seconds": 37.4}]
    parts = {"generate": 9.64, "update": 12.05, "<script>": 0.1}
    ppo = {"phase": "ppo", "seconds": 24.1, "tokens": 310_000, "parts": parts, "padding": 0.125}
    return [*rows, ppo, {"phase": "ppo_ptx", "seconds": 4312.0}]


def write_run(folder: Path, results: dict, metrics: Sequence[dict] = (), profile: Sequence[dict] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for name, rows in (("metrics.jsonl", metrics), ("profile.jsonl", profile)):
        if rows:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
