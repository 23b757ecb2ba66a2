"""NeMo-RL's advantages, their whitening, and its KL."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.integrations.nemo_rl.losses import MODULE, batch, kl_settings
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import advantages, ppo
from instructrl.ops.advantage_settings import WhitenSettings
from instructrl.ops.ppo_settings import KL_ESTIMATORS

_CENTRED, _SCALED = WhitenSettings(), WhitenSettings(center=False)


def compute_gae(own: Callable[..., Any]) -> Callable[..., Any]:
    def _compute_gae(
        self: Any,
        token_level_rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        gae_lambda: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        lam = self.gae_lambda if gae_lambda is None else gae_lambda
        return advantages.generalized_advantages(
            token_level_rewards, values, mask.bool(), gamma=self.gae_gamma, lam=lam
        )

    return _compute_gae


def reward_whiten(own: Callable[..., Any]) -> Callable[..., Any]:
    def _reward_whiten(self: Any, rewards: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        return advantages.masked_whiten(rewards, mask.bool(), settings=_CENTRED if shift_mean else _SCALED)

    return _reward_whiten


def calculate_kl(own: Callable[..., Any]) -> Callable[..., Any]:
    def calculate_kl(
        logprobs: Tensor,
        logprobs_reference: Tensor,
        kl_type: str = "k3",
        input_clamp_value: float | None = 20.0,
        output_clamp_value: float | None = 10.0,
        importance_sampling_weights: Tensor | None = None,
    ) -> Tensor:
        others = (input_clamp_value, output_clamp_value)
        # Left to the host: weights that are given, and a gradient for the reference.
        if (
            importance_sampling_weights is not None
            or logprobs_reference.requires_grad
            or kl_type not in KL_ESTIMATORS[:3]
        ):
            return own(logprobs, logprobs_reference, kl_type, *others, importance_sampling_weights)
        settings, everywhere = kl_settings(kl_type, *others, False), torch.ones_like(logprobs, dtype=torch.bool)
        return ppo.kl_token_losses(logprobs, logprobs_reference, everywhere, settings=settings).to(logprobs.dtype)

    return calculate_kl


def counted(function: Callable[..., Any], mask: Tensor, *args: Any) -> list[Tensor]:
    """Nobody reads what the host has where the mask is False."""
    module = importlib.import_module("nemo_rl.algorithms.advantage_estimator")
    config = {"gae_lambda": 0.95, "gae_gamma": 0.99, "normalize_advantages": True, "gae_lambda_value": None}
    config |= {"gae_lambda_policy": None, "length_adaptive_alpha": 0}
    losses = importlib.import_module(MODULE)
    found = function(module.GeneralizedAdvantageEstimator(config, losses.ClippedPGLossConfig()), *args)
    return [torch.where(mask.bool(), x, 0.0) for x in (found if isinstance(found, tuple) else (found,))]


def rollouts(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    mask = batch(draw)[0]["token_mask"]
    lam = draw.normal(shape[0]).sigmoid()
    return [Example((mask, draw.normal(*shape), draw.normal(*shape), mask, *own)) for own in ((), (0.5,), (lam,))]


def whitenings(draw: Draw) -> list[Example]:
    mask = batch(draw)[0]["token_mask"]
    return [Example((mask, draw.normal(*mask.shape) + 3.0, mask, *shift)) for shift in ((), (False,))]


def kls(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    options = [(), ("k1",), ("k2", 2.0, None), ("k3", None, None), ("k3", 2.0, 1.5)]
    found = [Example((draw.normal(*shape, scale=3.0, grad=True), draw.normal(*shape), *each)) for each in options]
    return [
        *found,
        Example((draw.normal(*shape, grad=True), draw.normal(*shape), "k3", 20.0, 10.0, draw.normal(*shape))),
    ]
