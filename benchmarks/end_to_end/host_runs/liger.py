"""Liger's losses from hidden states at the end of a tiny model of transformers, on tokens at random."""

from collections.abc import Callable

import torch
from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.end_to_end.host_runs.record import Record, main

VOCABULARY, BATCH, LENGTH = 2000, 8, 24


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=4)).eval()


def hidden(policy: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """Of the tokens before each."""
    return policy.transformer(tokens).last_hidden_state[:, :-1]


def _logprobs(policy: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found = policy(tokens).logits[:, :-1].log_softmax(-1)
    return found.gather(-1, tokens[:, 1:, None])[..., 0]


def _mask() -> Tensor:
    return torch.arange(LENGTH - 1) < torch.randint(4, LENGTH, (BATCH, 1))


Losses = Callable[[GPT2LMHeadModel, Tensor, Tensor], Tensor]


def grpo() -> Losses:
    """All steps on the samples of the first, so that ratios leave 1."""
    loss = LigerFusedLinearGRPOLoss(compiled=False)
    reference, old = model(), [torch.zeros(())]

    def step(policy: GPT2LMHeadModel, tokens: Tensor, mask: Tensor) -> Tensor:
        advantages = (tokens % 2 == 0).float().mean(-1)
        advantages = (advantages - advantages.mean()) / advantages.std()
        now, ref = _logprobs(policy, tokens), _logprobs(reference, tokens)
        if old[0].shape != now.shape:
            old[0] = now
        given = (hidden(policy, tokens), policy.lm_head.weight, tokens[:, 1:], mask, advantages)
        return loss(*given, ref_per_token_logps=ref, old_per_token_logps=old[0])[0]

    return step


def dpo() -> Losses:
    """The first half of a batch is chosen, the second rejected."""
    loss = LigerFusedLinearDPOLoss(compiled=False)
    reference = model()

    def step(policy: GPT2LMHeadModel, tokens: Tensor, mask: Tensor) -> Tensor:
        target = tokens[:, 1:].masked_fill(~mask, -100)
        with torch.no_grad():
            ref = hidden(reference, tokens)
        given = (policy.lm_head.weight, hidden(policy, tokens), target)
        return loss(*given, ref_input=ref, ref_weight=reference.lm_head.weight.detach())[0]

    return step


def _run(make: Callable[[], Losses]) -> Callable[[Record, int], None]:
    def train(record: Record, steps: int) -> None:
        policy, loss_of = model(), make()
        torch.manual_seed(1)
        tokens, mask = torch.randint(VOCABULARY, (BATCH, LENGTH)), _mask()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-4)
        record.start()
        for _ in range(steps):
            loss = loss_of(policy, tokens, mask)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            record.step(loss.item(), float(norm))
        record.end(policy.parameters())

    return train


TRAINERS = {each.__name__: _run(each) for each in (grpo, dpo)}

if __name__ == "__main__":
    main("liger", TRAINERS)
