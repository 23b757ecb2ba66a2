"""What every process of a job does in test_training.py, and a single process beside it.

    torchrun --nproc-per-node 2 worker.py SPREAD FOLDER [CHECKPOINTS]

SFT with a pretraining mix, a reward model and PPO-ptx on data that divide evenly nowhere, in float64 and without
dropout. Each trainer is run to its middle, saved, and run to its end; then another is made, goes on from that
checkpoint, and has to end with the same bits. Where CHECKPOINTS names the folder of another job, a third goes on from
there. The main process leaves the states at the end.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import blocks, comparisons, demonstrations, lively_policy, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import distributed
from instructrl.data.encoding import Encoder
from instructrl.models.backbone import set_residual_dropout
from instructrl.models.base import share
from instructrl.models.policy import Policy
from instructrl.models.roles import learner
from instructrl.models.settings import AdapterConfig, PassConfig
from instructrl.models.spread import unsharded
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.tracking.callbacks import Callback, StepDone
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, PPOConfig, RewardModelConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer
from instructrl.types import Demonstration, Rollout

ENCODER = tiny_encoder()
Spread = Literal["ddp", "fsdp"]
# Adam with a step in proportion to the gradient: of plain Adam, rounding turns the sign of whole steps.
LINEAR = AdamConfig(lr=0.1, eps=1.0)


def sft(passes: PassConfig, microbatch: int) -> SFTTrainer:
    """Batches of 6 and blocks of plain text; an epoch's last batch has a single demonstration."""
    config = SFTConfig(
        adam=AdamConfig(lr=1e-3, max_grad_norm=1.0),
        batch_size=7,
        epochs=2,
        residual_dropout=0.0,
        pretraining_fraction=0.2,
        microbatch=microbatch,
        passes=passes,
    )
    return SFTTrainer(tiny_policy(ENCODER).double(), demonstrations(13), ENCODER, config, seed=1, blocks=blocks(9))


def sft_bfloat16(passes: PassConfig, microbatch: int) -> SFTTrainer:
    """Another architecture: untied embeddings, some of them unnamed; in bfloat16, with checkpointed activations."""
    config = SFTConfig(
        adam=AdamConfig(lr=1e-3),
        batch_size=6,
        epochs=1,
        residual_dropout=0.0,
        microbatch=microbatch,
        passes=replace(passes, precision="bfloat16", checkpoint_activations=True),
    )
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(ENCODER.tokenizer) + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return SFTTrainer(
        Policy(LlamaForCausalLM(shape), len(ENCODER.tokenizer)).eval(), demonstrations(13), ENCODER, config, seed=1
    )


def reward_model(passes: PassConfig, microbatch: int) -> RewardModelTrainer:
    """Batches of 5 comparisons, the last of 1."""
    config = RewardModelConfig(adam=LINEAR, batch_size=5, microbatch=microbatch, passes=passes)
    network = tiny_reward_model(tiny_policy(ENCODER)).double()
    return RewardModelTrainer(network, comparisons(11), ENCODER, config, seed=1)


def said(policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0):
    """The same responses whatever the policy is: in bfloat16, rounding now and then changes a sample."""
    texts = demonstrations(first_episode + len(prompts), seed=2)[first_episode:]
    rows = [Demonstration(prompt=prompt, completion=row.completion) for prompt, row in zip(prompts, texts, strict=True)]
    return Rollout(sequences=encoder.demonstrations(rows), finished=torch.ones(len(rows), dtype=torch.bool))


def ppo_halves(passes: PassConfig, microbatch: int) -> PPOTrainer:
    """Weights in bfloat16 with float32 masters, and a clipped gradient."""
    config = PPOConfig(
        num_episodes=12,
        rollout_batch=6,
        minibatch=3,
        microbatch=microbatch,
        policy_adam=replace(LINEAR, max_grad_norm=1.0),
        value_adam=LINEAR,
        ptx_coef=0.5,
        ptx_examples_per_episode=1,
        passes=replace(passes, weights="bfloat16"),
    )
    prompts = [row.prompt for row in demonstrations(20)]
    policy = lively_policy(ENCODER, unnamed=5)
    judge = tiny_reward_model(policy)
    return PPOTrainer(policy, judge, prompts, ENCODER, config, seed=3, blocks=blocks(9), engine=said)


def ppo(passes: PassConfig, microbatch: int) -> PPOTrainer:
    """9 episodes an iteration, in minibatches of 3, twice each; a coefficient that adapts."""
    config = PPOConfig(
        num_episodes=27,
        rollout_batch=9,
        minibatch=3,
        microbatch=microbatch,
        num_epochs=2,
        policy_adam=AdamConfig(lr=1e-3),
        value_adam=AdamConfig(lr=1e-3),
        kl_target=0.5,
        ptx_coef=0.5,
        ptx_examples_per_episode=1,
        passes=passes,
    )
    prompts = [row.prompt for row in demonstrations(20)]
    policy, judge = lively_policy(ENCODER, unnamed=5).double(), tiny_reward_model(tiny_policy(ENCODER)).double()
    return PPOTrainer(policy, judge, prompts, ENCODER, config, seed=3, blocks=blocks(9))


def ppo_adapters(passes: PassConfig, microbatch: int) -> PPOTrainer:
    """Adapters of all roles on one base, whose tensors no job looks at; the policy's and the reference's add something
    from the start."""
    config = PPOConfig(
        num_episodes=14,
        rollout_batch=7,
        minibatch=7,
        microbatch=microbatch,
        policy_adam=AdamConfig(lr=1e-2),
        value_adam=AdamConfig(lr=1e-2),
        passes=passes,
    )
    policy = lively_policy(ENCODER).double()
    policy.base = share(policy.lm)
    policy = learner(policy, AdapterConfig(rank=3)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    prompts = [row.prompt for row in demonstrations(20)]
    return PPOTrainer(policy, tiny_reward_model(policy).double(), prompts, ENCODER, config, seed=3)


TRAINERS: dict[str, Callable[[PassConfig, int], Trainer]] = {
    "sft": sft,
    "sft_bfloat16": sft_bfloat16,
    "reward_model": reward_model,
    "ppo_halves": ppo_halves,
    "ppo": ppo,
    "ppo_adapters": ppo_adapters,
}


def job(how: Spread, folder: Path, others: Path | None = None, microbatch: int = 2) -> None:
    """The whole of it. Raises AssertionError where something is not as it should be."""
    for name, make in TRAINERS.items():
        passes = PassConfig(spread=how)
        trainer, log, checkpoints = make(passes, microbatch), RunLog(folder / name), saved(folder / name)
        trainer.run(log, until=trainer.num_steps // 2, checkpoints=OwnClock(folder / name / "never"))
        assert not (folder / name / "never").exists()
        trainer.save(checkpoints, log)
        trainer.run(log, callbacks=[Told(folder / name)])
        keep(trainer, folder / name / "end.safetensors")
        again = resumed(make(passes, microbatch), saved(folder / name))
        assert again.digest() == trainer.digest(), f"{name}: stopped and resumed is not the same"
        if others is not None:
            keep(resumed(make(passes, microbatch), saved(others / name)), folder / name / "continued.safetensors")
        if distributed.size_of_job() > 1:
            check(trainer, how)
        own = (x.to_local() if isinstance(x, DTensor) else x for _, x in tensors(trainer.state_dict()))
        most = distributed.largest(sum(x.numel() for x in own))
        if distributed.is_main():
            (folder / name / "held.json").write_text(json.dumps(most))
    sample(how, folder)
    dropout(how)
    failures()
    own = RunLog(folder / f"process-{distributed.rank()}")
    own.metrics("phase", 0, {"loss": 1.0})


class Told(Callback):
    """Writes down in which process it is called, and asks for samples there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_step(self, done: StepDone) -> None:
        with (self._folder / f"told-{distributed.rank()}").open("a") as file:
            file.write(f"{done.phase} {done.step} {len(done.samples(3))}\n")


class OwnClock(Checkpoints):
    """It is always time, but for the main process, whose clock counts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CheckpointConfig(), print)

    def due(self) -> bool:
        return not distributed.is_main()


def saved(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "state", CheckpointConfig(), print)


def resumed(trainer: Trainer, checkpoints: Checkpoints) -> Trainer:
    found = checkpoints.newest()
    assert found is not None
    assert 0 < found.step < trainer.num_steps
    trainer.resume(found)
    trainer.run(RunLog(None))
    return trainer


def gathered(state: Any) -> Any:
    """A nested state with its tensors whole."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state.full_tensor() if isinstance(state, DTensor) else state


def keep(trainer: Trainer, path: Path) -> None:
    state = gathered(trainer.state_dict())
    if distributed.is_main():
        save_file({place: x.detach().clone().contiguous() for place, x in tensors(state)}, path)


def tensors(state: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested state by its place; other numbers as tensors."""
    if isinstance(state, Tensor):
        yield place, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{place}/{key}")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from tensors(value, f"{place}/{i}")
    elif isinstance(state, int | float):
        yield place, torch.tensor(float(state), dtype=torch.float64)


def check(trainer: Trainer, how: Spread) -> None:
    """Sharded networks lie in shards, with their moments; copies are the same in every process."""
    networks = dict(trainer._modules)
    if isinstance(trainer, PPOTrainer) and how == "fsdp":
        networks |= {"reference": trainer.reference, "reward_model": trainer.reward_model}
    for name, network in networks.items():
        parameters = list(network.parameters())
        moments = [
            x
            for update in trainer._updates.values()
            for state in update.optimizer.state.values()
            for key, x in state.items()
            if key != "step"
        ]
        assert parameters
        assert moments
        if how == "ddp":
            assert not any(isinstance(x, DTensor) for x in (*parameters, *moments)), name
            mine = sum(float(x.detach().abs().sum()) for x in parameters)
            assert distributed.largest(mine) == -distributed.largest(-mine), f"{name}: the copies differ"
            continue
        for x in (*parameters, *moments):
            assert isinstance(x, DTensor), f"{name}: {tuple(x.shape)} is not sharded"
            most = -(-x.shape[0] // distributed.size_of_job())
            assert x.to_local().shape[0] <= most, f"{name}: {tuple(x.shape)} lies whole"
        held = sum(x.to_local().numel() for x in parameters)
        (everywhere,) = distributed.total([held])
        assert everywhere == sum(x.numel() for x in parameters)
    if how == "fsdp" and isinstance(trainer, SFTTrainer):
        with unsharded(trainer.policy) as network, unsharded(trainer.policy) as inner:
            assert inner is network
            assert all(x.numel() and not isinstance(x, DTensor) for x in network.parameters())
        assert not any(x.numel() for x in network.parameters()), "whole weights are left behind"


def sample(how: Spread, folder: Path) -> None:
    """Responses from a network that lies as it does in training: more of them than processes, and fewer."""
    trainer = ppo(PassConfig(spread=how), 2)
    found = {}
    for count in (1, 7):
        sampling = Sampling(seed=5, max_response_tokens=8, batch_size=2)
        rollout = sample_rollout(trainer.policy, ENCODER, trainer.prompts[:count], sampling)
        found |= {f"{count}/tokens": rollout.sequences.tokens, f"{count}/mask": rollout.sequences.mask}
    if distributed.is_main():
        save_file(found, folder / "samples.safetensors")


def dropout(how: Spread) -> None:
    """No two processes leave out the same units."""
    trainer = sft(PassConfig(spread=how), 2)
    set_residual_dropout(trainer.policy.lm, 0.5)
    seeds: list[int] = []
    with mock.patch.object(torch, "manual_seed", seeds.append):
        trainer.train_step()
    everyone = distributed.gather(torch.tensor(seeds), distributed.size_of_job())
    assert len(set(everyone.tolist())) == distributed.size_of_job()


def failures() -> None:
    """What goes wrong in the main process goes wrong in all, in the same words."""
    for error in (ValueError("some words"), OSError(28, "No space left on device", "some/file")):
        with pytest.raises(type(error)) as caught:
            distributed.from_main(mock.Mock(side_effect=error))
        assert str(caught.value) == str(error)


if __name__ == "__main__":
    with distributed.joined():
        job(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)  # pyright: ignore[reportArgumentType]
