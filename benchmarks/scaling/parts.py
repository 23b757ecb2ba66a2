"""Peak memory of a process while a job loads, trains, samples, saves and goes on: one process beside several.

    python -m benchmarks.scaling.parts --model FOLDER [--processes 2] [--steps sft ppo] [--out FILE.json] [--page]

The several lie in parts (FSDP2 over gloo). The steps are made as the commands make them: models from their folders, a
copy of each that learns, the trainer on top. PPO's reward model is a scalar head on the same network, saved beside.
Each moment's peak is the most that was resident since the moment before, above what a process that has imported torch
and done nothing else has; of several processes the largest counts. "go on" is a job of its own, which loads and then
reads the checkpoint. Sampling is measured as it is, with the network whole in each process, and block by block: there
all weights travel with each token, and every process has to decode as many, so that no response may end by itself.
--page writes docs/devices.md's table anew, of what --out has.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.core.memory import resident_bytes

PAGE, RESULTS = Path("docs/devices.md"), Path("benchmarks/results/parts.json")
STEPS = ("sft", "ppo")
ROWS, RESPONSE_TOKENS, PROMPT_TOKENS = 8, 16, 48
MOMENTS = {
    "load": "loaded, roles made, before the first step",
    "step": "a step",
    "sample": "of that, sampling: the network whole",
    "sample in turn": "sampling: a block at a time",
    "checkpoint": "a checkpoint written",
    "save": "the model saved",
    "go on": "loaded, and a checkpoint read",
}


def empty_bytes() -> int:
    """What a process has that has imported torch."""
    program = "import torch\nprint(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def measured(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the largest peak of it in any process."""
    from instructrl import distributed
    from instructrl.models.heap import give_back

    give_back()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    found = function()
    return found, distributed.largest(resident_bytes("VmHWM"))


def trainer_of(step: str, model: str, judge: str, passes: Any) -> tuple[Any, Any]:
    """As the commands make it, and what it was made of, which stays in memory as it does there."""
    from instructrl.data.encoding import Encoder
    from instructrl.data.settings import Limits
    from instructrl.data.tokenizers import load_tokenizer
    from instructrl.models.heap import give_back_large
    from instructrl.models.roles import ALL_WEIGHTS, learner, load_policy, load_reward_model
    from instructrl.trainers.ppo import PPOTrainer
    from instructrl.trainers.settings import PPOConfig, SFTConfig
    from instructrl.trainers.sft import SFTTrainer
    from instructrl.types import Demonstration

    in_parts = passes.spread == "fsdp"
    limits = Limits(max_prompt_tokens=PROMPT_TOKENS, max_response_tokens=RESPONSE_TOKENS)
    encoder = Encoder(load_tokenizer(model), limits)
    start = load_policy(model, encoder.tokenizer, ALL_WEIGHTS, in_parts=in_parts)
    give_back_large(start)
    prompts = [f"Say in a few words what number {i} is good for." for i in range(ROWS)]
    if step == "sft":
        rows = [Demonstration(prompt=prompt, completion="For counting.") for prompt in prompts]
        config = SFTConfig(batch_size=ROWS, epochs=2, residual_dropout=0.0, microbatch=2, passes=passes)
        return SFTTrainer(learner(start), rows, encoder, config), start
    reward_model = load_reward_model(judge, ALL_WEIGHTS, in_parts=in_parts)
    config = PPOConfig(
        num_episodes=2 * ROWS, rollout_batch=ROWS, minibatch=ROWS, microbatch=2, warmup_iterations=1, passes=passes
    )
    trainer = PPOTrainer(learner(start), learner(reward_model), prompts, encoder, config)
    return trainer, (start, reward_model)


@contextmanager
def in_turn_alone() -> Iterator[None]:
    """Inside, sampling takes a network block by block."""
    from instructrl.models.policy import Policy
    from instructrl.models.spread import in_turn
    from instructrl.rollout import generate

    with mock.patch.object(generate, "unsharded", in_turn), mock.patch.object(Policy, "ends", return_value=[-1]):
        yield


def job(step: str, model: str, judge: str, folder: Path, going_on: bool) -> None:
    """What each process does; the main one prints the peaks in bytes behind "@"."""
    from instructrl import distributed
    from instructrl.models.settings import PassConfig
    from instructrl.models.spread import exact
    from instructrl.rollout.generate import Sampling, sample_rollout
    from instructrl.trainers.checkpoints import Checkpoints
    from instructrl.trainers.log import RunLog
    from instructrl.trainers.settings import CheckpointConfig

    torch.set_num_threads(1)
    with distributed.joined():
        passes = PassConfig(spread="fsdp" if distributed.size_of_job() > 1 else "ddp", weights="float32")
        log, store = RunLog(None), Checkpoints(folder / "state", CheckpointConfig(), print)
        found: dict[str, float] = {}
        if going_on:

            def go_on() -> Any:
                trainer, kept = trainer_of(step, model, judge, passes)
                there = store.newest()
                assert there is not None
                trainer.resume(there)
                return trainer, kept

            (trainer, _kept), found["go on"] = measured(go_on)
            found["same"] = float((folder / "digest").read_text(encoding="utf-8") == trainer.digest())
        else:
            (trainer, _kept), found["load"] = measured(lambda: trainer_of(step, model, judge, passes))
            _, found["step"] = measured(lambda: trainer.run(log, until=1))
            if step == "ppo":
                sampling = Sampling(seed=0, max_response_tokens=RESPONSE_TOKENS)

                def sample() -> Any:
                    return sample_rollout(trainer.policy, trainer.encoder, trainer.prompts, sampling)

                _, found["sample"] = measured(sample)
                if distributed.size_of_job() > 1:
                    with in_turn_alone():
                        _, found["sample in turn"] = measured(sample)
            _, found["checkpoint"] = measured(lambda: trainer.save(store, log))
            policy = trainer.averaged if step == "ppo" else trainer.policy

            def save() -> None:
                with exact(policy, main_alone=True) as whole:
                    distributed.from_main(lambda: whole.save(folder / "model", trainer.encoder.tokenizer))

            _, found["save"] = measured(save)
            digest = trainer.digest()
            distributed.from_main(lambda: (folder / "digest").write_text(digest, encoding="utf-8"))
        if distributed.is_main():
            print("@" + json.dumps(found), flush=True)


def started(processes: int, *words: str) -> dict[str, float]:
    """The peaks of a job."""
    program = ["-m", "benchmarks.scaling.parts", *words]
    if processes > 1:
        program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *program]
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(program)}: found the exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("@"))[1:])


def measure(model: str, steps: tuple[str, ...], processes: int) -> dict[str, dict[str, dict[str, float]]]:
    """By step, moment and number of processes: bytes above an empty process."""
    from instructrl.data.tokenizers import load_tokenizer
    from instructrl.models.policy import Policy
    from instructrl.models.scoring import RewardModel

    empty, found = empty_bytes(), {}
    with tempfile.TemporaryDirectory() as place:
        judge, tokenizer = f"{place}/judge", load_tokenizer(model)
        RewardModel.from_policy(Policy.load(model, tokenizer), torch.Generator().manual_seed(0)).save(judge, tokenizer)
        for step in steps:
            for count in (1, processes):
                folder = Path(place) / f"{step}-{count}"
                folder.mkdir()
                words = ("--job", step, "--model", model, "--judge", judge, "--folder", str(folder))
                peaks = started(count, *words) | started(count, *words, "--going-on")
                assert peaks.pop("same"), f"{step} on {count}: what was read back is not what was written"
                for moment, peak in peaks.items():
                    found.setdefault(step, {}).setdefault(moment, {})[str(count)] = peak - empty
    return found


def table(found: dict[str, dict[str, dict[str, float]]], processes: int) -> str:
    """Markdown: a line a moment."""
    from benchmarks.core.tables import markdown

    rows = []
    for step, moments in found.items():
        for moment in MOMENTS:
            if moment in moments:
                one, several = moments[moment].get("1"), moments[moment][str(processes)]
                one = moments["sample"]["1"] if one is None else one
                sizes = [f"{peak / 2**20:,.0f}" for peak in (one, several)]
                rows.append([step, MOMENTS[moment], *sizes, f"{several / one:.2f}"])
    return markdown(("step", "moment", "one process, MiB", f"each of {processes}, MiB", "share"), rows)


def section(found: dict[str, Any]) -> str:
    """What stands between the page's markers."""
    return (
        f"Peak memory of a process on SmolLM2-135M, in MiB above a process that has imported torch and nothing else; "
        f"of\n{found['processes']} processes the larger. By `python -m benchmarks.scaling.parts --model FOLDER "
        f"--out {RESULTS} --page`:\n\n{table(found['bytes'], found['processes'])}"
    )


def write_page(found: dict[str, Any]) -> None:
    begin, end = "<!-- parts:begin -->\n", "<!-- parts:end -->"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    PAGE.write_text(before + begin + section(found) + end + rest.partition(end)[2], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true")
    for name in ("--job", "--judge", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--going-on", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job is not None:
        job(given.job, given.model, given.judge, Path(given.folder), given.going_on)
        return
    if given.model is not None:
        peaks = measure(given.model, tuple(given.steps), given.processes)
        text = json.dumps({"processes": given.processes, "bytes": peaks}, indent=1)
        given.out.write_text(text + "\n", encoding="utf-8")
    found = json.loads(given.out.read_text(encoding="utf-8"))
    print(table(found["bytes"], found["processes"]))
    if given.page:
        write_page(found)


if __name__ == "__main__":
    main()
