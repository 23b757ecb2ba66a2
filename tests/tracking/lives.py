"""Commands in processes of their own, some of which are killed."""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import stand_ins
import tiny
import torch

from instructrl import cli
from instructrl.data.readers import write_jsonl
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.types import Prompt

NAMES = ("tensorboard", "wandb", "trackio")
LIMITS = ("--limits.max-prompt-tokens", "12", "--limits.max-response-tokens", "8")
SFT = ("sft", "--model", "model", "--data", "demonstrations.jsonl", "--validation", "demonstrations.jsonl")
SFT = (*SFT, "--sft.epochs", "2", "--sft.batch-size", "4", "--sft.residual-dropout", "0", *LIMITS)
RM = ("rm", "--model", "model", "--data", "comparisons.jsonl", "--reward-model.batch-size", "4", *LIMITS)
PPO = ("ppo", "--model", "model", "--reward-model", "reward", "--data", "prompts.jsonl", "--ppo.num-episodes", "88")
PPO = (*PPO, "--ppo.rollout-batch", "8", "--ppo.minibatch", "8", "--ppo.num-epochs", "1", *LIMITS)
EVAL = ("eval", "--baseline", "model", "--models", "other", "--reward-model", "reward", "--data", "prompts.jsonl")
EVAL = (*EVAL, *LIMITS)


def make_world(folder: Path) -> None:
    encoder = tiny.tiny_encoder()
    policy = tiny.tiny_policy(encoder)
    policy.save(folder / "model", encoder.tokenizer)
    tiny.tiny_policy(encoder, seed=1).save(folder / "other", encoder.tokenizer)
    tiny.tiny_reward_model(policy).save(folder / "reward", encoder.tokenizer)
    rows = tiny.demonstrations(16)
    write_jsonl(folder / "demonstrations.jsonl", rows)
    write_jsonl(folder / "comparisons.jsonl", tiny.comparisons(16))
    write_jsonl(folder / "prompts.jsonl", [Prompt(text=row.prompt) for row in rows])


def life(
    work: Sequence[str] | Callable[[], object],
    *,
    real: bool = False,
    kill_at_row: int | None = None,
    save_after: Sequence[int] = (),
    prepare: Callable[[pytest.MonkeyPatch], object] = lambda patch: None,
) -> tuple[int, str]:
    """A command or a function in the working folder. Returns its exit code, negative for a signal, and what it said.

    real: with what is installed, not with stand-ins. kill_at_row: SIGKILL when so many rows were told. save_after: the
    calls after which it is time for a checkpoint. prepare: whatever else is to be different in there.
    """
    said = Path("said")
    child = os.fork()
    if not child:
        code = 3
        with said.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            try:
                patch = pytest.MonkeyPatch()
                if not real:
                    stand_ins.install(patch)
                _arrange(patch, kill_at_row, save_after)
                prepare(patch)
                random.seed(0), np.random.seed(0), torch.manual_seed(0)  # as a fork finds them, they are somebody's
                code = int(work() or 0) if callable(work) else cli.main(work)
                Path("random").write_text(random_state())
            finally:
                if sys.exc_info()[0] is not None:
                    sys.excepthook(*sys.exc_info())  # as Python does it at its end
                sys.stderr.flush()
                os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


def _arrange(patch: pytest.MonkeyPatch, kill_at_row: int | None, save_after: Sequence[int]) -> None:
    rows, looks, metrics = [0], [0], RunLog.metrics

    def counted(*args, **kwargs) -> None:
        metrics(*args, **kwargs)
        rows[0] += 1
        if rows[0] == kill_at_row:
            os.kill(os.getpid(), signal.SIGKILL)

    def due(self) -> bool:
        looks[0] += 1
        return looks[0] in save_after

    patch.setattr(RunLog, "metrics", counted)
    patch.setattr(Checkpoints, "due", due)


def random_state() -> str:
    """A digest of all global generators."""
    state = [random.getstate(), [str(x) for x in np.random.get_state()], torch.get_rng_state().tolist()]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
