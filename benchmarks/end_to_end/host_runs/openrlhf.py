"""OpenRLHF's PPO with a critic, and its group_norm with the KL and the entropy in the loss, on a tiny model.

Its own experience maker, replay buffers, and trainers of actor and critic, in one process: what its DeepSpeed strategy
does is done by plain PyTorch, and responses are words at random, so no engine samples them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from benchmarks.end_to_end.host_runs.record import Record, main

VOCABULARY, PROMPT, RESPONSE, BATCH, MICRO, SAMPLES = 2000, 12, 24, 16, 8, 4
KL_COEF = 0.05


class Strategy:
    """What the trainers ask of a strategy, of one process without DeepSpeed."""

    ring_attn_group = None
    accumulated_gradient = 1

    def __init__(self, args: SimpleNamespace) -> None:
        self.args, self.norms = args, {}

    def is_rank_0(self) -> bool:
        return False  # it would draw a bar

    def all_reduce(self, found: Any) -> Any:
        return found

    def backward(self, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()

    def optimizer_step(self, optimizer: torch.optim.Optimizer, model: nn.Module, scheduler: Any, name: str) -> None:
        self.norms[model] = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    def get_grad_norm(self, model: nn.Module) -> float:
        return self.norms[model]


def options(**given: Any) -> SimpleNamespace:
    """The namespaces of its command line."""
    actor = {"eps_clip_low_high": [0.2, 0.2], "dual_clip": 3.0, "loss_agg_mode": "token-mean", "aux_loss_coef": 0.0}
    advantage = {"gamma": 0.99, "lambd": 0.95, "no_std_norm": False, "is_correction_level": "off"}
    advantage |= {"is_correction_mode": "mask", "is_correction_gating": "ratio", "is_correction_threshold": (0.5, 5.0)}
    kl = {"init_coef": KL_COEF, "estimator": "k1", "use_loss": False, "unbiased_gradient": False}
    parts = {
        "actor": actor | {"policy_loss_type": "ppo", "entropy_coef": None},
        "advantage": advantage | {"estimator": "gae"},
        "kl": kl,
        "train": {"max_epochs": 2, "dynamic_batch_enable": False, "colocate_all": False, "async_enable": False},
        "ds": {"packing_samples": False, "tensor_parallel_size": 1, "ring_attn_size": 1},
        "rollout": {"n_samples_per_prompt": SAMPLES},
        "reward": {"clip_range": (-10.0, 10.0)},
        "vllm": {},
    }
    args = SimpleNamespace(**{name: SimpleNamespace(**(of | given.get(name, {}))) for name, of in parts.items()})
    args.algo = SimpleNamespace(advantage=args.advantage, kl=args.kl)
    return args


def shape() -> LlamaConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, normalize_reward=False, **sizes)


class Models:
    """A policy, a reference equal to it, and a critic, by its own classes, of float32."""

    def __init__(self) -> None:
        from openrlhf.models import Actor
        from openrlhf.models.model import _get_critic_model

        torch.manual_seed(0)
        self.actor, self.reference = (Actor(LlamaForCausalLM(shape())) for _ in range(2))
        self.reference.load_state_dict(self.actor.state_dict())
        for model in (self.actor, self.reference):
            model.packing_samples = False
        self.critic = _get_critic_model(LlamaModel.__base__, LlamaModel)(shape())
        self.optimizers = [torch.optim.SGD(x.parameters(), 0.1) for x in (self.actor, self.critic)]


def rollout(models: Models, maker: Any, step: int) -> Any:
    """Prompts in groups of samples, responses at random, rewards by their even words."""
    from openrlhf.models.utils import compute_approx_kl
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(step)
    prompts = torch.randint(3, VOCABULARY, (BATCH // SAMPLES, PROMPT), generator=generator).repeat_interleave(
        SAMPLES, 0
    )
    responses = torch.randint(3, VOCABULARY, (BATCH, RESPONSE), generator=generator)
    lengths = torch.randint(RESPONSE // 3, RESPONSE + 1, (BATCH, 1), generator=generator)
    response_mask = (torch.arange(RESPONSE) < lengths).long()
    sequences = torch.cat([prompts, responses * response_mask], 1)
    attention_mask = torch.cat([torch.ones_like(prompts), response_mask], 1)
    # One shorter: it says of which positions the next token is an action.
    action_mask = torch.cat([torch.zeros_like(prompts), response_mask], 1)[:, 1:]
    with torch.no_grad():
        old, base = (x(sequences, action_mask, attention_mask) for x in (models.actor, models.reference))
        values = models.critic(sequences, action_mask, attention_mask)
    use_loss = maker.args.algo.kl.use_loss
    made = Experience(
        sequences=sequences,
        attention_mask=attention_mask,
        action_mask=action_mask,
        action_log_probs=old,
        base_action_log_probs=base if use_loss else None,
        values=values,
        kl=torch.zeros_like(old) if use_loss else compute_approx_kl(old, base),
        rewards=((responses % 2 == 0) * response_mask).sum(1) / lengths.squeeze(1),
        index=list(range(BATCH)),
    )
    return maker.compute_advantages_and_returns([made])[0]


def _trainers(models: Models, strategy: Strategy) -> tuple[Any, Any]:
    from openrlhf.trainer.ray import ppo_actor, ppo_critic

    schedulers = [torch.optim.lr_scheduler.ConstantLR(x, 1.0) for x in models.optimizers]
    shared = {"micro_train_batch_size": MICRO, "dataloader_pin_memory": False}
    with mock.patch("torch.cuda.current_device", return_value=0):
        critic = ppo_critic.CriticPPOTrainer(
            strategy, models.critic, models.optimizers[1], schedulers[1], value_clip=0.5, **shared
        )
        with mock.patch.object(ppo_actor, "torch_dist_barrier_and_cuda_sync"):
            actor = ppo_actor.ActorPPOTrainer(
                strategy, models.actor, None, models.optimizers[0], schedulers[0], **shared
            )
    return actor, critic


def _run(**given: Any) -> Callable[[Record, int], None]:
    def train(record: Record, steps: int) -> None:
        from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
        from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

        strategy, models = Strategy(options(**given)), Models()
        actor, critic = _trainers(models, strategy)
        maker = RemoteExperienceMaker(None, None, None, None, FixedKLController(KL_COEF), strategy, None)
        with_critic = strategy.args.advantage.estimator == "gae"
        trained = [models.actor, *([models.critic] if with_critic else [])]
        record.start()
        for step in range(steps):
            experience = rollout(models, maker, step)
            with mock.patch("torch.cuda.current_device", return_value=torch.device("cpu")):
                actor.replay_buffer.append(experience)
                found = actor.ppo_train(KL_COEF)
                actor.replay_buffer.clear()
                loss = found["policy_loss"]
                if with_critic:
                    critic.replay_buffer.append(experience)
                    loss += critic.ppo_train()["critic_loss"]
                    critic.replay_buffer.clear()
            record.step(loss, sum(strategy.get_grad_norm(x) ** 2 for x in trained) ** 0.5)
        record.end(x for model in trained for x in model.parameters())

    return train


TRAINERS = {
    "ppo": _run(),
    "group_norm": _run(
        advantage={"estimator": "group_norm", "gamma": 1.0},
        kl={"estimator": "k3", "use_loss": True},
        actor={"entropy_coef": 0.01, "loss_agg_mode": "seq-mean-token-mean"},
    ),
}

if __name__ == "__main__":
    main("openrlhf", TRAINERS)
