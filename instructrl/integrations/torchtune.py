"""torchtune: its PPO loss, its advantages, its log-probabilities, and its cross-entropy in chunks.

    from instructrl.integrations import torchtune
    torchtune.install()       # the functions

Losses are named in a recipe's configuration, `loss._component_: instructrl.integrations.torchtune.PPOLoss`, with the
arguments that torchtune's have; nothing has to be installed for that.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import advantages, logprobs, ppo
from instructrl.ops.advantage_settings import WhitenSettings
from instructrl.ops.ppo_settings import PolicySettings, ValueSettings
from instructrl.ops.presets import PRESETS

_WHITENING = PRESETS["torchtune"].whitening or WhitenSettings()


class PPOLoss(nn.Module):
    """torchtune's `rlhf.loss.PPOLoss`. Losses are float32 whatever the inputs are."""

    def __init__(self, epsilon: float = 0.1, value_clip_range: float = 0.2, value_coeff: float = 0.1) -> None:
        super().__init__()
        # No ratio is below 0, which an epsilon of 1 is enough for.
        self._policy = PolicySettings(clip_low=min(epsilon, 1.0), clip_high=epsilon)
        self._value = ValueSettings(cliprange=value_clip_range)
        self.value_coeff = value_coeff

    def forward(
        self,
        pi_old_logprobs: Tensor,
        pi_logprobs: Tensor,
        advantages: Tensor,
        phi_old_values: Tensor,
        phi_values: Tensor,
        returns: Tensor,
        padding_masks: Tensor | None = None,
        value_padding_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Masks are True where a token counts. The mean of the ratios is over all tokens, as torchtune's."""
        everything = torch.ones_like(pi_logprobs, dtype=torch.bool)
        of_policy = everything if padding_masks is None else padding_masks
        of_value = everything if value_padding_masks is None else value_padding_masks
        policy = ppo.clipped_policy_loss(pi_logprobs, pi_old_logprobs, advantages, of_policy, settings=self._policy)
        value = ppo.clipped_value_loss(phi_values, phi_old_values, returns, of_value, settings=self._value)
        metrics = policy.metrics
        clipped = metrics["num_policy_clipped"] / metrics["num_tokens"].clamp(min=1.0)
        ratios = (pi_logprobs.detach() - pi_old_logprobs).exp().mean()
        loss = policy.loss + self.value_coeff * value.loss
        return loss, policy.loss.detach(), value.loss.detach(), ratios, clipped


class CEWithChunkedOutputLoss(nn.Module):
    """torchtune's `modules.loss.CEWithChunkedOutputLoss`. Recipes know it by its name, and give logits in chunks."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_output_chunks = num_output_chunks
        self.ignore_index = ignore_index

    def forward(self, logits: list[Tensor], labels: Tensor) -> Tensor:
        """logits: chunks [B, T / num_output_chunks, V] of the tokens. labels: [B, T]."""
        mask = labels != self.ignore_index
        parts = zip(labels.chunk(self.num_output_chunks, 1), mask.chunk(self.num_output_chunks, 1), strict=True)
        total: Tensor | float = 0.0
        for chunk, (tokens, counted) in zip(logits, parts, strict=False):
            total = total - logprobs.token_logprobs(chunk, tokens, mask=counted).sum()
        return total / mask.sum()


def _logits_to_logprobs(logits: Tensor, sequences: Tensor, temperature: float = 1.0) -> Tensor:
    return logprobs.token_logprobs(logits, sequences, temperature=temperature).to(logits.dtype)


def _get_batch_log_probs(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def get_batch_log_probs(
        logits: Tensor, labels: Tensor, label_pad_token_id: int = -100, return_average_logprobs: bool = False
    ) -> Tensor:
        if logits.shape[:-1] != labels.shape:
            return own(logits, labels, label_pad_token_id, return_average_logprobs)
        labels = labels[:, 1:]
        mask = labels != label_pad_token_id
        found = logprobs.token_logprobs(logits[:, :-1], labels, mask=mask).sum(-1)
        if return_average_logprobs:
            found = found / mask.sum(-1).clamp(min=1)
        return found.to(logits.dtype)

    return get_batch_log_probs


def _estimate_advantages(own: Callable[..., Any]) -> Callable[..., Any]:
    def estimate_advantages(
        values: Tensor, rewards: Tensor, gamma: float, lmbda: float, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # Ours are targets, and discounts.
        differentiated = torch.is_grad_enabled() and (values.requires_grad or rewards.requires_grad)
        if differentiated or not (0.0 <= gamma <= 1.0 and 0.0 <= lmbda <= 1.0):
            return own(values, rewards, gamma, lmbda, masks)
        # The mask says what is whitened; steps are counted under it too.
        every = torch.ones_like(values, dtype=torch.bool)
        found, returns = advantages.generalized_advantages(rewards, values, every, gamma=gamma, lam=lmbda)
        found = advantages.masked_whiten(found, every if masks is None else masks, settings=_WHITENING)
        dtype = torch.result_type(values, rewards)
        return found.to(dtype), returns.to(dtype)

    return estimate_advantages


def _loss(made: Callable[..., nn.Module], options: dict[str, float], *args: Any) -> Any:
    """Recipes divide the loss in place."""
    found = made(**options)(*args)
    first = found[0] if isinstance(found, tuple) else found
    first /= 2
    return found


def _padded(function: Callable[..., Tensor], padding: Tensor, *args: Any) -> Tensor:
    """Recipes write to the log-probabilities of padding."""
    found = function(*args)
    found[padding] = 1.0
    return found


def _ppo_losses(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(options: dict[str, float], *masks: Tensor) -> Example:
        logs = [draw.normal(*shape, scale=0.2) - 3.0 for _ in range(2)]
        values = [draw.normal(*shape, scale=0.5) for _ in range(2)]
        new, value = logs[1].requires_grad_(), values[1].requires_grad_()
        given = (logs[0], new, draw.normal(*shape), values[0], value, draw.normal(*shape))
        return Example((options, *given, *masks))

    mask = draw.lengths(*shape)
    longer = mask | mask.roll(1, 1)
    recipe = {"epsilon": 0.2, "value_clip_range": 0.1, "value_coeff": 0.3}
    return [example(recipe, mask, longer), example({}), example({"epsilon": 1.5}, mask)]


def _cross_entropies(draw: Draw) -> list[Example]:
    def example(chunks: int, ignored: int = -100) -> Example:
        shape = (draw.sizes.batch, draw.sizes.tokens)
        logits = draw.normal(*shape, draw.sizes.vocabulary, scale=2.0, grad=True)
        labels = draw.ids(*shape).masked_fill_(~draw.lengths(*shape), ignored)
        return Example(({"num_output_chunks": chunks, "ignore_index": ignored}, list(logits.chunk(chunks, 1)), labels))

    return [example(8), example(1), example(3, ignored=-1)]


def _selections(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(*temperature: float) -> Example:
        logits = draw.normal(*shape, draw.sizes.vocabulary, scale=2.0, grad=True)
        return Example((~draw.lengths(*shape), logits, draw.ids(*shape), *temperature))

    return [example(), example(0.7)]


def _sequences(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(*others: Any) -> Example:
        logits = draw.normal(*shape, draw.sizes.vocabulary, scale=2.0, grad=True)
        ignored = others[0] if others else -100
        labels = draw.ids(*shape).masked_fill_(~draw.lengths(*shape), ignored)
        return Example((logits, labels, *others))

    return [example(), example(-1, False), example(-100, True)]


def _trajectories(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)

    def example(*others: Any) -> Example:
        return Example((draw.normal(*shape), draw.normal(*shape, scale=0.3), *others))

    differentiated = Example((draw.normal(*shape, grad=True), draw.normal(*shape), 1.0, 0.9))
    return [example(1.0, 0.95, draw.lengths(*shape)), example(0.9, 0.5), example(1.5, 1.0), differentiated]


ADAPTER = Adapter(
    host="torchtune",
    distribution="torchtune",
    package="torchtune",
    tried=("0.6.1",),
    replacements=(
        Replacement(
            name="torchtune.rlhf.rewards:estimate_advantages",
            signature="(values, rewards, gamma, lmbda, masks=None)",
            sources=("d68253e87cd8",),
            stand_in=_estimate_advantages,
            examples=_trajectories,
        ),
        Replacement(
            name="torchtune.rlhf.sequence_processing:logits_to_logprobs",
            signature="(logits, sequences, temperature=1.0)",
            sources=("dd51ebe910e5",),
            stand_in=lambda own: _logits_to_logprobs,
            examples=_selections,
            call=_padded,
        ),
        Replacement(
            name="torchtune.rlhf.sequence_processing:get_batch_log_probs",
            signature="(logits, labels, label_pad_token_id=-100, return_average_logprobs=False)",
            sources=("213d0e03c342",),
            stand_in=_get_batch_log_probs,
            examples=_sequences,
        ),
        Replacement(
            name="torchtune.rlhf.loss.ppo:PPOLoss",
            signature="(self, pi_old_logprobs, pi_logprobs, advantages, phi_old_values, phi_values, returns, "
            "padding_masks=None, value_padding_masks=None)",
            sources=("e5682336bbe4",),
            stand_in=lambda own: PPOLoss,
            named="instructrl.integrations.torchtune.PPOLoss",
            examples=_ppo_losses,
            call=_loss,
            described="forward",
        ),
        Replacement(
            name="torchtune.modules.loss.ce_chunked_output_loss:CEWithChunkedOutputLoss",
            signature="(self, logits, labels)",
            sources=("63f6e5dece28",),
            stand_in=lambda own: CEWithChunkedOutputLoss,
            named="instructrl.integrations.torchtune.CEWithChunkedOutputLoss",
            examples=_cross_entropies,
            call=_loss,
            described="forward",
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
