"""A row of the table of bad inputs, and how a command line is tried on it."""

import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl.data.readers import write_jsonl
from instructrl.models.roles import learner, load_policy
from instructrl.models.settings import AdapterConfig
from instructrl.types import Document, Prompt

_ADAPTER = AdapterConfig(rank=2)
_LIMITS = "--fresh True --limits.max-prompt-tokens 12 --limits.max-response-tokens 8"
# Command lines that are right in the folder that `make_world` writes: a row adds what is wrong to one of them.
STEPS = {
    "sft": f"sft --model model --data demonstrations.jsonl --validation demonstrations.jsonl --out out {_LIMITS} "
    "--sft.epochs 1 --sft.residual-dropout 0",
    "rm": f"rm --model model --data comparisons.jsonl --demonstrations demonstrations.jsonl --out out {_LIMITS}",
    "ppo": f"ppo --model model --reward-model reward --data prompts.jsonl --out out {_LIMITS} "
    "--ppo.num-episodes 8 --ppo.rollout-batch 8 --ppo.minibatch 4 --ppo.num-epochs 1",
    "eval": f"eval --baseline model --models other --reward-model reward --data prompts.jsonl --out out {_LIMITS}",
    "suites": f"eval --models model --suites winogender --suite.data sets --out out {_LIMITS.split(' --limits')[0]}",
    "judge": "judge --annotations a.json",
    "outputs": "judge --outputs a.json b.json --reward-model reward",
    "benchmark": f"judge --benchmark rows.jsonl --reward-model reward {_LIMITS.removeprefix('--fresh True ')}",
    "prepare": "data prepare --tokenizer model --out prepared --prompts prompts.jsonl",
    "report": "report finished",
    "smoke": "run smoke --out out --fresh",
    "files": "run files --model model --data splits --corpus corpus.jsonl --out out --fresh --recipe.block-tokens 16 "
    "--recipe.limits.max-prompt-tokens 12 --recipe.limits.max-response-tokens 8 --recipe.sft.residual-dropout 0 "
    "--recipe.ppo-start.residual-dropout 0",
    "demonstrations": "data check demonstrations rows.jsonl",
    "comparisons": "data check comparisons rows.jsonl",
    "prompts": "data check prompts rows.jsonl",
    "corpus": "data check corpus rows.jsonl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A bad input and what is said about it.

    what: is wrong, in words. make: writes it into the working folder. step: a name in STEPS, or "" for nothing before
    the options. options: appended to it; of an option that stands twice the last counts. message: the whole of it, with
    "…" for what other libraries or other numbers make of it.
    """

    what: str
    message: str
    step: str = ""
    options: str = ""
    make: Callable[[], object] = lambda: None

    @property
    def arguments(self) -> list[str]:
        return shlex.split(f"{STEPS.get(self.step, '')} {self.options}")

    @property
    def shown(self) -> str:
        """The command line for a reader: a step's right options are left out."""
        begin = STEPS.get(self.step, "")
        if "--" in begin:
            begin = f"{begin.split(' --')[0]} …"
        return f"instructrl {begin} {self.options}".replace("  ", " ").strip()


def matches(pattern: str, message: str) -> bool:
    """Whether this is the message, anything in place of each "…"."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), message) is not None


# ---- the folder in which rows are tried


def make_world(folder: Path) -> None:
    """Right models, data and results, tiny; `out` holds an earlier run, which the steps would remove."""
    encoder = tiny_encoder()
    policy = tiny_policy(encoder)
    policy.save(folder / "model", encoder.tokenizer)
    tiny_policy(encoder, seed=1).save(folder / "other", encoder.tokenizer)
    tiny_reward_model(policy).save(folder / "reward", encoder.tokenizer)
    adapted = load_policy(folder / "model", encoder.tokenizer, _ADAPTER)
    adapted = learner(adapted, _ADAPTER, 0)
    adapted.save(folder / "adapter", encoder.tokenizer)
    tiny_reward_model(adapted).save(folder / "adapted_reward", encoder.tokenizer)
    for name in ("adapter", "adapted_reward"):
        settings = folder / name / "adapter_config.json"
        settings.write_text(settings.read_text().replace(str(folder / "model"), "model"), encoding="utf-8")
    rows = demonstrations(12)
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "comparisons.jsonl", comparisons(12))
    write_jsonl(folder / "prompts.jsonl", [Prompt(text=row.prompt) for row in rows])
    write_jsonl(folder / "corpus.jsonl", [Document(text=row.completion) for row in demonstrations(40, seed=1)])
    (folder / "sets" / "winogender").mkdir(parents=True)
    sentences = "".join(f"a.b.0.{gender}.txt\tw1 w{i}\n" for i, gender in enumerate(("male", "female", "neutral")))
    (folder / "sets" / "winogender" / "all_sentences.tsv").write_text(f"sentid\tsentence\n{sentences}")
    (folder / "splits").mkdir()
    for name in ("demonstrations.train", "demonstrations.valid", "comparisons.train", "comparisons.valid"):
        text = (folder / f"{name.split('.')[0]}.jsonl").read_bytes()
        (folder / "splits" / f"{name}.jsonl").write_bytes(text)
    for name in ("prompts.train", "prompts.test"):
        (folder / "splits" / f"{name}.jsonl").write_bytes((folder / "prompts.jsonl").read_bytes())
    (folder / "finished").mkdir()
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "num_prompts": 12}
    results = {"run": {"name": "eval", "seed": 0}, "models": [{"name": "a", "win_rate": rate}]}
    (folder / "finished" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "out" / "models" / "sft").mkdir(parents=True)
    (folder / "out" / "models" / "sft" / "config.json").write_text("{}", encoding="utf-8")
    for name in ("config.yaml", "results.json", "metrics.jsonl"):
        (folder / "out" / name).write_text("seed: 1\n" if name == "config.yaml" else "{}\n", encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder with a digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


# ---- makers of bad input, in the working folder


def text(name: str, content: str | bytes) -> Callable[[], object]:
    """A file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


def rows(*values: object, name: str = "rows.jsonl") -> Callable[[], object]:
    """A file of JSON lines; a str stands as it is."""
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return text(name, "".join(f"{line}\n" for line in lines))


def zipped(cut: int | None = None, flip: int | None = None, name: str = "rows.jsonl.gz") -> Callable[[], object]:
    """A gzip file of prompts, without its end or with a bit of it changed."""
    lines = "".join(json.dumps({"prompt": f"w{number}"}) + "\n" for number in range(2000))
    data = bytearray(gzip.compress(lines.encode(), mtime=0))
    if flip is not None:
        data[flip] ^= 1
    return text(name, bytes(data[:cut]))


def edited(path: str, **entries: object) -> Callable[[], object]:
    """A JSON object with other entries; None removes one."""

    def edit() -> None:
        content = json.loads(Path(path).read_text(encoding="utf-8")) | entries
        kept = {key: value for key, value in content.items() if value is not None}
        Path(path).write_text(json.dumps(kept), encoding="utf-8")

    return edit


def removed(*paths: str) -> Callable[[], object]:
    """Files that are not there."""
    return lambda: [Path(path).unlink(missing_ok=True) for path in paths]


def cut(path: str, num_bytes: int) -> Callable[[], object]:
    """The beginning of a file."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:num_bytes])


def weights(path: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], object]:
    """Weights that were changed."""

    def edit() -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(f"{path}/model.safetensors")
        change(tensors)
        save_file(tensors, f"{path}/model.safetensors", metadata={"format": "pt"})

    return edit


def both(*makers: Callable[[], object]) -> Callable[[], object]:
    """One after the other."""
    return lambda: [make() for make in makers]
