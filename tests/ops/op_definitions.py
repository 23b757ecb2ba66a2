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

from instructrl.ops.advantage_settings import GAESettings, GroupSettings, RewardSettings, WhitenSettings


def pairwise_ranking_loss(scores, preferred, margins=None, weights=None, settings=None):
    """Prompt by prompt, over its list of pairs; settings: with a label_smoothing."""
    smoothing = 0.0 if settings is None else settings.label_smoothing
    zero = scores.new_zeros(())
    rows, pairs, correct = [], [], []
    for p in range(scores.shape[0]):
        i, j = preferred[p].nonzero().unbind(1)
        i, j = i[i != j], j[i != j]
        difference = scores[p, i] - scores[p, j]
        x = difference if margins is None else difference - _at(margins, p, i, j)
        pair = torch.logaddexp(-x, zero)
        if smoothing:
            pair = (1 - smoothing) * pair + smoothing * torch.logaddexp(x, zero)
        # One after the other: PyTorch's sum is a tree, whose float32 nobody has to be as near to the truth as.
        rows.append(sum((pair if weights is None else _at(weights, p, i, j) * pair).unbind(), zero))
        pairs.append(len(i))
        correct.append(int((difference > 0).sum()))
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


def token_statistics(logits, tokens, mask=None, temperature=1.0, allowed=None, logit_settings=None):
    shape = {"allowed": allowed, "logit_settings": logit_settings}
    logprobs, entropy = token_logprobs_and_entropy(logits, tokens, temperature, mask, **shape)
    constants = []
    for n, row in enumerate(logits.detach()):
        if mask is not None and not mask[n]:
            constants.append((torch.tensor(False), row.new_zeros(()), row.new_zeros(())))
            continue
        possible, z = _class_numbers(row, temperature, allowed, logit_settings)
        is_largest = row[possible].argmax() == (possible == tokens[n]).nonzero().squeeze()
        constants.append((is_largest, z.mean() * temperature, torch.softmax(z, 0).square().sum()))
    return logprobs, entropy, *(torch.stack(each) for each in zip(*constants, strict=True))


def linear_token_statistics(hidden, weight, tokens, bias=None, mask=None, max_workspace_bytes=None, **rest):
    return token_statistics(_logits(hidden, weight, bias, mask), tokens, mask=mask, **rest)


def candidate_logprobs(logits, ids, mask=None, **rest):
    columns = [token_logprobs(logits, column, mask=mask, **rest) for column in ids.unbind(1)]
    return torch.stack(columns, 1)


def linear_candidate_logprobs(hidden, weight, ids, bias=None, mask=None, max_workspace_bytes=None, **rest):
    return candidate_logprobs(_logits(hidden, weight, bias, mask), ids, mask=mask, **rest)


def _shard_numbers(logits, mask, tanh_slope):
    if mask is not None:
        logits = torch.where(mask.unsqueeze(1), logits, 0.0)
    return _tanh(tanh_slope * logits) if tanh_slope else logits


def _counted(x, mask):
    return x if mask is None else x * mask.view(-1, *[1] * (x.dim() - 1))


def shard_rows(logits, tokens, mask=None, temperature=1.0, tanh_slope=0.0):
    z = _shard_numbers(logits, mask, tanh_slope)
    largest = z.max(1).values
    log_sum = torch.logsumexp((z - largest.unsqueeze(1)) / temperature, 1)
    log_softmax = F.log_softmax(z / temperature, 1)
    chosen = torch.stack([z[n, k] if k >= 0 else z.new_zeros(()) for n, k in enumerate(tokens.tolist())])
    entropy = -(log_softmax.exp() * log_softmax).sum(1)
    return tuple(_counted(x, mask) for x in (chosen, entropy, torch.stack([largest, log_sum], 1)))


def _shard_gradient_by_z(z, tokens, normalizers, mask, entropy, grad_logprobs, grad_entropy, temperature):
    gradient = torch.zeros_like(z)
    for n in range(z.shape[0]):
        log_p = (z[n] - normalizers[n, 0]) / temperature - normalizers[n, 1]
        own = torch.arange(z.shape[1]) == tokens[n]
        by_entropy = log_p.exp() * (log_p + entropy[n])
        gradient[n] = (grad_logprobs[n] * (own.to(z.dtype) - log_p.exp()) - grad_entropy[n] * by_entropy) / temperature
    return _counted(gradient, mask)


def shard_gradient(logits, tokens, normalizers, mask=None, tanh_slope=0.0, **rest):
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        z = _shard_numbers(logits, mask, tanh_slope)
    gradient = _shard_gradient_by_z(z.detach(), tokens, normalizers, mask, **rest)
    return torch.autograd.grad(z, logits, gradient)[0] if z is not logits else gradient


def linear_shard_rows(hidden, weight, tokens, workspace, bias=None, mask=None, **rest):
    return shard_rows(_logits(hidden, weight, bias, mask), tokens, mask=mask, **rest)


def linear_shard_gradients(hidden, weight, tokens, normalizers, workspace, bias=None, mask=None, **rest):
    inputs = [x.detach().requires_grad_() for x in (hidden, weight, bias)]
    with torch.enable_grad():
        logits = _logits(*inputs, mask)
    gradient = shard_gradient(logits.detach(), tokens, normalizers, mask=mask, **rest)
    return torch.autograd.grad(logits, inputs, gradient)


def _spans(mask, cu_seqlens):
    """First position and end of each sequence in the flat tensors."""
    if cu_seqlens is not None:
        return list(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True))
    length = mask.shape[1]
    return [(row * length, (row + 1) * length) for row in range(mask.shape[0])]


def _sequences(mask, cu_seqlens):
    """Lists of the flat positions that count, one list a sequence."""
    flat = mask.flatten().tolist()
    return [[position for position in range(*span) if flat[position]] for span in _spans(mask, cu_seqlens)]


def _flat(x):
    """Numbers of numpy, which a loop goes through faster than through tensors of one element."""
    return None if x is None else x.detach().flatten().numpy()


def _backwards(steps, rewards, values, gamma, decay, bootstrap, dones, next_values):
    """A of each step, from the last to the first: the recurrence as it is written. Steps that do not count have reward
    and value 0."""
    zero = values.dtype.type(0)
    running, following, found = zero, zero if bootstrap is None else bootstrap, {}
    for position, counts in reversed(steps):
        reward, value = (rewards[position], values[position]) if counts else (zero, zero)
        done = counts and dones is not None and dones[position]
        if next_values is not None:
            following = next_values[position]
        elif done:
            following = zero
        running = reward + gamma * following - value + (zero if done else decay * running)
        found[position], following = running, value
    return found


def _advantages(rewards, values, counted, gamma, lam, ends, gae, valued=None):
    """counted: positions of each sequence with an advantage. valued: those with a value, if they are others."""
    reward, value = _flat(rewards), _flat(values)
    dones, next_values, bootstrap = (_flat(x) for x in (ends or (None, None, None)))
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantage_of, return_of = advantages.view(-1).numpy(), returns.view(-1).numpy()
    kind = reward.dtype.type
    for sequence, positions in enumerate(counted):
        own = positions if valued is None else valued[sequence]
        steps = [(position, True) for position in own]
        if gae.gaps == "count" and own:
            members = set(own)
            steps = [(position, position in members) for position in range(own[0], own[-1] + 1)]
        own_lam = float(lam[sequence]) if isinstance(lam, torch.Tensor) and lam.dim() == 1 else float(lam)
        start = None if bootstrap is None else bootstrap[sequence]
        decays = [float(gamma) * x for x in (own_lam, own_lam if gae.value_lam is None else gae.value_lam)]
        arguments = (start, dones, next_values)
        found, for_returns = (_backwards(steps, reward, value, kind(gamma), kind(x), *arguments) for x in decays)
        for position in own:
            return_of[position] = for_returns[position] + value[position]
        for position in positions:
            advantage_of[position] = found[position]
    return advantages, returns


def generalized_advantages(
    rewards, values, mask, gamma=1.0, lam=0.95, cu_seqlens=None, ends=None, settings=GAESettings()
):
    return _advantages(rewards, values, _sequences(mask, cu_seqlens), gamma, lam, ends, settings)


def _kl(log_ratio, by):
    if by.input_clamp is not None:
        log_ratio = torch.clamp(log_ratio, -by.input_clamp, by.input_clamp)
    estimate = {
        "k1": lambda d: d,
        "k2": lambda d: d**2 / 2,
        "k3": lambda d: torch.expm1(-d) + d,
        "abs": torch.abs,
    }[by.estimator](log_ratio)
    return estimate if by.output_clamp is None else torch.clamp(estimate, -by.output_clamp, by.output_clamp)


def ppo_advantages(
    logprobs,
    ref_logprobs,
    values,
    scores,
    mask,
    kl_coef,
    gamma=1.0,
    lam=0.95,
    cu_seqlens=None,
    ends=None,
    settings=RewardSettings(),
):
    if settings.score_clip is not None:
        scores = torch.clamp(scores, -settings.score_clip, settings.score_clip)
    rewards = torch.zeros_like(values).flatten()
    log_ratio = torch.where(mask, logprobs - ref_logprobs, 0.0).flatten()
    counted, valued = _sequences(mask, cu_seqlens), []
    for sequence, (positions, (_, end)) in enumerate(zip(counted, _spans(mask, cu_seqlens), strict=True)):
        rewards[positions] = -kl_coef * _kl(log_ratio[positions], settings.kl)
        behind = settings.score_at == "behind" and positions and positions[-1] + 1 < end
        valued.append([*positions, positions[-1] + 1] if behind else positions)
        if positions:
            rewards[valued[-1][-1]] += scores[sequence]
    rewards = rewards.view_as(values)
    advantages, returns = _advantages(rewards, values, counted, gamma, lam, ends, settings.gae, valued)
    count = torch.tensor(float(mask.sum()), dtype=values.dtype)
    stats = torch.stack([advantages.sum(), advantages.square().sum(), count, log_ratio.sum()])
    return advantages, returns, rewards, stats


def masked_whiten(x, mask, stats=None, groups=None, num_groups=None, settings=WhitenSettings()):
    result = torch.zeros_like(x)
    parts = [mask]
    if groups is not None:
        own = groups.view(-1, *[1] * (x.dim() - 1))
        parts = [mask & (own == group) for group in range(num_groups)]
    for part in parts:
        counted = x[part]
        if counted.numel() == 0:
            continue
        # Sums of squares in pairs: the running variance of PyTorch is a few units of float64 less exact.
        squares = ((counted - counted.mean()) ** 2).sum()
        variance = squares / max(counted.numel() - settings.ddof, 1)
        deviation = {
            "variance": torch.sqrt(variance + settings.epsilon),
            "clamp": torch.sqrt(torch.clamp(variance, min=settings.epsilon)),
            "deviation": torch.sqrt(variance) + settings.epsilon,
        }[settings.epsilon_at]
        result[part] = (counted - counted.mean()) / deviation + (0.0 if settings.center else counted.mean())
    return result


def group_advantages(scores, groups, num_groups, settings=GroupSettings()):
    result = torch.full_like(scores, math.nan)
    for place, group in enumerate(groups.tolist()):
        members = groups == group
        own, others = scores[members], scores[members & (torch.arange(len(scores)) != place)]
        baseline = {"mean": own.mean(), "leave_one_out": others.mean(), "none": 0.0}[settings.baseline]
        if settings.baseline == "leave_one_out" and others.numel() == 0:
            baseline = scores[place]
        scale = 1.0
        if settings.scale == "deviation":
            deviation = own.std(correction=settings.ddof) if own.numel() > settings.ddof else 0.0
            scale = deviation + settings.epsilon
        result[place] = (scores[place] - baseline) / scale
    return result


def linear_nll_loss(hidden, weight, tokens, mask, weights=None, num_tokens=None, max_workspace_bytes=None, **head):
    logprobs = linear_token_logprobs(hidden, weight, tokens, mask=mask, **head)
    if weights is not None:
        logprobs = logprobs[mask] * weights[mask]
    return -logprobs.sum() / divisor(mask, num_tokens)


def linear_ppo_loss(hidden, weight, tokens, *args, mask=None, max_workspace_bytes=None, **rest):
    head = {name: rest.pop(name) for name in ("bias", "temperature", "logit_settings") if name in rest}
    rows = [x.reshape(-1, *x.shape[tokens.dim() :]) for x in (hidden, tokens, mask)]
    logprobs = linear_token_logprobs(rows[0], weight, rows[1], mask=rows[2], **head)
    return ppo_loss(logprobs.view(tokens.shape), *args, mask=mask, **rest)
