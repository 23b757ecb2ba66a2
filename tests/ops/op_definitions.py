"""The operations spelled out, in plain PyTorch with autograd or in Python loops. Slow, and independent of the package.

Each takes the keyword arguments of the public function and computes in the dtype that they have.
"""

import math

import torch
import torch.nn.functional as F
from ppo_definitions import (  # noqa: F401
    clipped_policy_loss,
    clipped_value_loss,
    divisor,
    kl_token_losses,
    policy_token_losses,
    ppo_loss,
    value_token_losses,
)


def pairwise_ranking_loss(scores, preferred, margins=None, weights=None, settings=None):
    """Pair by pair; settings: with a label_smoothing."""
    smoothing = 0.0 if settings is None else settings.label_smoothing
    zero = scores.new_zeros(())
    rows, pairs, correct = [], [], []
    for p in range(scores.shape[0]):
        row, won = zero, [(i, j) for i, j in preferred[p].nonzero().tolist() if i != j]
        numbers = scores[p].tolist()
        for i, j in won:
            x = scores[p, i] - scores[p, j]
            x = x if margins is None else x - _at(margins, p, i, j)
            pair = torch.logaddexp(-x, zero)
            if smoothing:
                pair = (1 - smoothing) * pair + smoothing * torch.logaddexp(x, zero)
            row = row + (pair if weights is None else _at(weights, p, i, j) * pair)
        rows.append(row)
        pairs.append(len(won))
        correct.append(sum(numbers[i] > numbers[j] for i, j in won))
    loss = torch.stack(rows) if rows else scores.sum(1)
    return loss, torch.tensor(pairs, dtype=torch.int64), torch.tensor(correct, dtype=torch.int64)


def _at(numbers, *place):
    return numbers[place[: numbers.dim()]]


def tied_ranking_loss(scores, preferred, tied, weights=None, settings=None):
    """Logarithms of the probabilities of the two models, as their papers have them."""

    def log_win(d):
        terms = [torch.zeros_like(d), math.log(settings.parameter) - d]
        if settings.model == "davidson":
            terms = [torch.zeros_like(d), -d, math.log(settings.parameter) - d / 2]
        return -torch.logsumexp(torch.stack(terms), 0)

    def log_tie(d):
        if settings.model == "davidson":
            return math.log(settings.parameter) - d / 2 + log_win(d)
        return math.log(settings.parameter**2 - 1) + log_win(d) + log_win(-d)

    counts, rows = [], []
    for p in range(scores.shape[0]):
        won = [(i, j) for i, j in preferred[p].nonzero().tolist() if i != j]
        ties = [(i, j) for i, j in (tied[p] | tied[p].t()).nonzero().tolist() if i < j]
        row = scores.new_zeros(())
        for log_probability, pairs in ((log_win, won), (log_tie, ties)):
            for i, j in pairs:
                weight = 1.0 if weights is None else _at(weights, p, i, j)
                row = row - weight * log_probability(scores[p, i] - scores[p, j])
        rows.append(row)
        counts.append((len(won), sum(bool(scores[p, i] > scores[p, j]) for i, j in won), len(ties)))
    return torch.stack(rows), *torch.tensor(counts, dtype=torch.int64).unbind(1)


def plackett_luce_loss(scores, ranks):
    counts = torch.zeros(2, scores.shape[0], dtype=torch.int64)
    rows = []
    for p in range(scores.shape[0]):
        row = scores.new_zeros(())
        for i in (ranks[p] >= 0).nonzero().flatten().tolist():
            left = (ranks[p] >= ranks[p, i]).nonzero().flatten().tolist()
            if len(left) > 1:
                row = row - F.log_softmax(scores[p, left], 0)[left.index(i)]
                counts[:, p] += torch.tensor([1, all(scores[p, i] > scores[p, j] for j in left if j != i)])
        rows.append(row)
    loss = torch.stack(rows) if rows else scores.sum(1)
    return loss, *counts


def _tanh(x):
    if x.dtype != torch.float64:
        return torch.tanh(x)
    # The derivative of torch.tanh, 1 - tanh^2, cancels far out, which a truth for results in float64 must not.
    e = torch.exp(-2.0 * x.abs())
    return x.sign() * (1.0 - e) / (1.0 + e)


def _class_numbers(row, temperature, allowed, logit_settings):
    """The classes of a row that are possible, and what is under their softmax."""
    possible = row > -math.inf if allowed is None else (row > -math.inf) & allowed
    possible = possible.nonzero().squeeze(1)
    z = row[possible]
    if logit_settings is not None:
        z = logit_settings.scale * z
        cap = logit_settings.softcap
        z = z if cap is None else cap * _tanh(z / cap)
    return possible, z / temperature


def token_logprobs_and_entropy(logits, tokens, temperature=1.0, mask=None, allowed=None, logit_settings=None):
    logprobs, entropies = [], []
    for row in range(logits.shape[0]):
        if mask is not None and not mask[row]:
            logprobs.append(logits.new_zeros(()))
            entropies.append(logits.new_zeros(()))
            continue
        possible, z = _class_numbers(logits[row], temperature, allowed, logit_settings)
        log_softmax = F.log_softmax(z, dim=0)
        place = (possible == tokens[row]).nonzero().squeeze()
        logprobs.append(log_softmax[place])
        entropies.append(-(log_softmax.exp() * log_softmax).sum())
    if not logprobs:
        return logits.sum(1), logits.sum(1)
    return torch.stack(logprobs), torch.stack(entropies)


def token_logprobs(*args, **kwargs):
    return token_logprobs_and_entropy(*args, **kwargs)[0]


def probabilities(logits, temperature=1.0, allowed=None, logit_settings=None):
    rows = torch.zeros_like(logits)
    for n, row in enumerate(logits):
        mask = allowed[n] if allowed is not None and allowed.dim() == 2 else allowed
        possible, z = _class_numbers(row, temperature, mask, logit_settings)
        rows[n, possible] = torch.softmax(z, 0)
    return rows


def _logits(hidden, weight, bias, mask):
    if mask is not None:
        hidden = torch.where(mask.unsqueeze(1), hidden, 0.0)
    return F.linear(hidden, weight, bias)


def linear_token_logprobs_and_entropy(hidden, weight, tokens, bias=None, mask=None, max_workspace_bytes=None, **rest):
    return token_logprobs_and_entropy(_logits(hidden, weight, bias, mask), tokens, mask=mask, **rest)


def linear_token_logprobs(*args, **kwargs):
    return linear_token_logprobs_and_entropy(*args, **kwargs)[0]


def _sequences(mask, cu_seqlens):
    """Lists of the flat positions that count, one list a sequence."""
    if cu_seqlens is None:
        length = mask.shape[1]
        spans = [(row * length, (row + 1) * length) for row in range(mask.shape[0])]
    else:
        spans = list(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True))
    flat = mask.flatten().tolist()
    return [[position for position in range(*span) if flat[position]] for span in spans]


def generalized_advantages(rewards, values, mask, gamma=1.0, lam=0.95, cu_seqlens=None):
    # Over numbers of numpy, which a loop goes through faster than through tensors of one element.
    reward, value = rewards.detach().flatten().numpy(), values.detach().flatten().numpy()
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantage_of, return_of = advantages.view(-1).numpy(), returns.view(-1).numpy()
    gamma, decay = reward.dtype.type(gamma), reward.dtype.type(gamma * lam)
    for positions in _sequences(mask, cu_seqlens):
        following = running = reward.dtype.type(0)
        for position in reversed(positions):
            running = reward[position] + gamma * following - value[position] + decay * running
            following = value[position]
            advantage_of[position], return_of[position] = running, running + value[position]
    return advantages, returns


def ppo_advantages(logprobs, ref_logprobs, values, scores, mask, kl_coef, gamma=1.0, lam=0.95, cu_seqlens=None):
    rewards = torch.zeros_like(values).flatten()
    log_ratio = torch.where(mask, logprobs - ref_logprobs, 0.0).flatten()
    for sequence, positions in enumerate(_sequences(mask, cu_seqlens)):
        rewards[positions] = -kl_coef * log_ratio[positions]
        if positions:
            rewards[positions[-1]] += scores[sequence]
    rewards = rewards.view_as(values)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam, cu_seqlens)
    count = torch.tensor(float(mask.sum()), dtype=values.dtype)
    stats = torch.stack([advantages.sum(), advantages.square().sum(), count, log_ratio.sum()])
    return advantages, returns, rewards, stats


def masked_whiten(x, mask):
    counted = x[mask]
    variance = counted.var() if counted.numel() > 1 else counted.new_zeros(())
    result = torch.zeros_like(x)
    result[mask] = (counted - counted.mean()) * torch.rsqrt(variance + 1e-8)
    return result


def linear_nll_loss(hidden, weight, tokens, mask, bias=None, weights=None, num_tokens=None, max_workspace_bytes=None):
    logprobs = linear_token_logprobs(hidden, weight, tokens, bias, mask)
    if weights is not None:
        logprobs = logprobs[mask] * weights[mask]
    return -logprobs.sum() / divisor(mask, num_tokens)


def linear_ppo_loss(
    hidden, weight, tokens, *args, mask=None, bias=None, temperature=1.0, max_workspace_bytes=None, **rest
):
    rows = [x.reshape(-1, *x.shape[tokens.dim() :]) for x in (hidden, tokens, mask)]
    logprobs = linear_token_logprobs(rows[0], weight, rows[1], bias, rows[2], temperature=temperature)
    return ppo_loss(logprobs.view(tokens.shape), *args, mask=mask, **rest)
