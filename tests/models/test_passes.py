"""Precision and activation checkpointing change speed and memory, and of the result no more than they say."""

import pytest
import torch
from tiny import demonstrations, lively_policy, tiny_encoder, tiny_reward_model
from torch import nn

from instructrl.data.encoding import Encoder
from instructrl.models.passes import applied
from instructrl.models.policy import Policy
from instructrl.models.settings import PassConfig

PLAIN, SAVING = PassConfig(), PassConfig(checkpoint_activations=True)
LOW = PassConfig(precision="bfloat16")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


def sequences(encoder: Encoder):
    return encoder.demonstrations(demonstrations(6))


def gradients(policy: Policy, passes: PassConfig, encoder: Encoder) -> tuple[list[torch.Tensor], int]:
    """Gradients of the log-probabilities' sum, and the elements that autograd kept for them."""
    kept = 0

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += x.numel()
        return x

    with applied(passes, [policy]):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            total = policy(sequences(encoder)).sum()
        return list(torch.autograd.grad(total, list(policy.parameters()))), kept


def test_checkpoints_keep_less_and_change_no_bit(encoder):
    policy = lively_policy(encoder)
    (plain, kept), (saving, kept_less) = (gradients(policy, passes, encoder) for passes in (PLAIN, SAVING))
    assert all(torch.equal(a, b) for a, b in zip(plain, saving, strict=True))
    assert kept_less < 0.6 * kept


def test_blocks_are_their_own_again_afterwards(encoder):
    policy = lively_policy(encoder)
    with applied(SAVING, [policy]):
        assert any("forward" in vars(module) for module in policy.modules())
    assert not any("forward" in vars(module) for module in policy.modules())


def test_a_network_without_blocks_is_refused():
    with (
        pytest.raises(ValueError, match=r"checkpoint_activations: found .* accepted is false"),
        applied(SAVING, [nn.Linear(2, 2)]),
    ):
        pass


def test_bfloat16_is_in_the_products_and_nowhere_else(encoder):
    policy = lively_policy(encoder)
    reward_model = tiny_reward_model(policy)
    seen = set()
    block = policy.lm.base_model.h[0].attn.c_attn
    block.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with applied(LOW, [policy]), torch.no_grad():
        logprobs, scores = policy(sequences(encoder)), reward_model(sequences(encoder))
    assert seen == {torch.bfloat16}
    assert logprobs.dtype == scores.dtype == torch.float32
    # A score that had been rounded to bfloat16 would survive a second rounding.
    assert not torch.equal(scores, scores.bfloat16().float())
    with torch.no_grad():
        expected = policy(sequences(encoder))
    assert 0 < float((logprobs - expected).abs().max()) < 0.1 * float(expected.abs().max())
