"""The options' formulas as they are written without us: what options.py calls eager PyTorch, and compiles."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.workloads import plain_linear, plain_logprobs

Terms = Callable[..., Tensor]


def mean_of(terms: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, terms, 0.0).sum() / mask.sum()


def capped(of_logits: Terms) -> Terms:
    """Of softly capped logits."""
    return lambda logits, **x: of_logits(30.0 * torch.tanh(logits / 30.0), **x)


def allowed(of_logits: Terms) -> Terms:
    """Of the classes that are allowed."""
    return lambda logits, allowed, **x: of_logits(logits.masked_fill(~allowed, -torch.inf), **x)


def candidates(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, ids)


def statistics(logits: Tensor, tokens: Tensor) -> list[Tensor]:
    """Log-probability, entropy, whether the token is the largest, mean logit, sum of squares of probabilities."""
    found = torch.log_softmax(logits, dim=-1)
    probabilities, largest = found.exp(), logits.argmax(-1) == tokens
    entropy, squares = -(probabilities * found).sum(-1), probabilities.detach().square().sum(-1)
    return [plain_logprobs(logits, tokens), entropy, largest, logits.detach().mean(-1), squares]


def sampled(logits: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = torch.softmax(logits, dim=-1).cumsum(-1)
    return torch.searchsorted(cumulative, (uniforms.unsqueeze(1) * cumulative[:, -1:])).squeeze(1)


def weighted_nll(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    return -mean_of(weights * plain_linear(hidden, weight, tokens), mask)


def clip(low: float, high: float, dual: float | None = None, clamp: float | None = None) -> Terms:
    """Of a log ratio and advantages."""

    def terms(log_ratio: Tensor, advantages: Tensor, **_: Tensor) -> Tensor:
        ratio = (log_ratio if clamp is None else log_ratio.clamp(-clamp, clamp)).exp()
        found = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
        return found if dual is None else torch.where(advantages < 0, torch.minimum(found, -advantages * dual), found)

    return terms


def cispo(log_ratio: Tensor, advantages: Tensor, logprobs: Tensor, **_: Tensor) -> Tensor:
    return -log_ratio.exp().clamp(0.8, 1.2).detach() * advantages * logprobs


def reinforce(log_ratio: Tensor, advantages: Tensor, logprobs: Tensor, **_: Tensor) -> Tensor:
    return -advantages * logprobs


def sapo(log_ratio: Tensor, advantages: Tensor, **_: Tensor) -> Tensor:
    temperature = torch.where(advantages > 0, 1.0, 1.05)
    return -advantages * torch.sigmoid(temperature * (log_ratio.exp() - 1)) * 4 / temperature


def of_sequences(log_ratio: Tensor, advantages: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    mean = torch.where(mask, log_ratio, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return PPO_CLIP(mean.detach() + logprobs - logprobs.detach(), advantages)


def k3(d: Tensor) -> Tensor:
    return torch.exp(-d) - 1 + d


# Of the difference of log-probabilities and the probability ratio.
KL: dict[str, Terms] = {
    "k1": lambda d, ratio: d,
    "k2": lambda d, ratio: 0.5 * d.square(),
    "k3": lambda d, ratio: k3(d),
    "abs": lambda d, ratio: d.abs(),
    "k3 straight through": lambda d, ratio: 0.5 * d.square() + (k3(d) - 0.5 * d.square()).detach(),
    "k3 clamped": lambda d, ratio: k3(d.clamp(-0.3, 0.3)).clamp(-0.04, 0.04),
    "k3 times the ratio": lambda d, ratio: ratio * k3(d),
}
PPO_CLIP = clip(0.2, 0.2)


def squares(values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
    near = old_values + (values - old_values).clamp(-0.2, 0.2)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def objective(policy: Terms = PPO_CLIP, kl: Terms | None = None, critic: bool = True) -> Terms:
    """The whole loss, with a tenth of the value loss and of the KL."""

    def loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, **x: Tensor) -> Tensor:
        log_ratio = logprobs - x.get("old_logprobs", logprobs.detach())
        terms = policy(log_ratio=log_ratio, advantages=advantages, logprobs=logprobs, mask=mask)
        if critic:
            terms = terms + 0.1 * squares(x["values"], x["old_values"], x["returns"])
        if kl is not None:
            terms = terms + 0.1 * kl(d=logprobs - x["ref_logprobs"], ratio=log_ratio.exp())
        return mean_of(x["weights"] * terms if "weights" in x else terms, mask)

    return loss


def linear_objective(policy: Terms, critic: bool) -> Terms:
    whole = objective(policy, critic=critic)
    return lambda hidden, weight, tokens, **x: whole(plain_linear(hidden, weight, tokens), **x)


def policy_terms(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, PPO_CLIP(logprobs - old_logprobs, advantages), 0.0)


def value_terms(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, squares(values, old_values, returns), 0.0)


def kl_terms(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, k3(logprobs - ref_logprobs), 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, lam: float | Tensor = 0.95, value_lam: float | None = None,
    dones: Tensor | None = None, bootstrap: Tensor | None = None, gaps: bool = False,
) -> list[Tensor]:  # fmt: skip
    """A loop over time. gaps: masked positions between counted ones are steps of value 0 and reward 0."""
    inside = mask.flip(1).cumsum(1).flip(1) > 0 if gaps else mask
    rewards, counted = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    found, own = torch.zeros_like(rewards), torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap
    running, other = torch.zeros_like(after), torch.zeros_like(after)
    for t in range(rewards.shape[1] - 1, -1, -1):
        alive = 1.0 if dones is None else (~dones[:, t]).to(rewards.dtype)
        delta = rewards[:, t] + alive * after - counted[:, t]
        running = torch.where(inside[:, t], delta + lam * alive * running, running)
        found[:, t] = running
        if value_lam is not None:
            other = torch.where(inside[:, t], delta + value_lam * alive * other, other)
            own[:, t] = other
        after = torch.where(inside[:, t], counted[:, t], after)
    returns = (found if value_lam is None else own) + counted
    return [torch.where(mask, found, 0.0), torch.where(mask, returns, 0.0)]


def whiten(center: bool = True, ddof: int = 1, epsilon_at: str = "variance", epsilon: float = 1e-8) -> Terms:
    scales: dict[str, Terms] = {
        "variance": lambda variance: torch.rsqrt(variance + epsilon),
        "clamp": lambda variance: torch.rsqrt(variance.clamp(min=epsilon)),
        "deviation": lambda variance: 1 / (variance.sqrt() + epsilon),
    }

    def run(x: Tensor, mask: Tensor, groups: Tensor | None = None, num_groups: int = 1) -> Tensor:
        """By group of rows, of which there may be one."""
        groups = torch.zeros(len(x), dtype=torch.int64) if groups is None else groups

        def total(y: Tensor) -> Tensor:
            return by_group(torch.where(mask, y, 0.0).sum(1), groups, num_groups)[0].unsqueeze(1)

        count = total(torch.ones_like(x))
        mean = total(x) / count
        found = (x - mean) * scales[epsilon_at](total((x - mean).square()) / (count - ddof))
        return torch.where(mask, found if center else found + mean, 0.0)

    return run


def by_group(x: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Sums and counts of each row's group."""
    sums = torch.zeros(num_groups, dtype=x.dtype).index_add(0, groups, x)
    return sums[groups], torch.bincount(groups, minlength=num_groups)[groups]


def group_advantages(baseline: str, scaled: bool) -> Terms:
    def run(scores: Tensor, groups: Tensor, num_groups: int) -> Tensor:
        sums, counts = by_group(scores, groups, num_groups)
        centred = scores - sums / counts
        if baseline == "leave_one_out":
            return centred * counts / (counts - 1)
        if not scaled:
            return centred
        variance = by_group(centred.square(), groups, num_groups)[0] / (counts - 1)
        return centred / (variance.sqrt() + 1e-4)

    return run


def comparisons(smoothing: float = 0.0) -> Terms:
    def loss(scores: Tensor, preferred: Tensor, margins: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        x = scores.unsqueeze(2) - scores.unsqueeze(1) - (0.0 if margins is None else margins)
        terms = -(1 - smoothing) * F.logsigmoid(x) - smoothing * F.logsigmoid(-x)
        return torch.where(preferred, terms if weights is None else weights * terms, 0.0).sum((1, 2))

    return loss


def ties(win: Terms, tie: Terms) -> Terms:
    """Of the log-probabilities of a win and of a tie by difference of scores; ties stand in both of their places."""

    def loss(scores: Tensor, preferred: Tensor, tied: Tensor) -> Tensor:
        x = scores.unsqueeze(2) - scores.unsqueeze(1)
        return -torch.where(preferred, win(x), torch.where(tied, 0.5 * tie(x), 0.0)).sum((1, 2))

    return loss


def _rao_kupper_win(x: Tensor) -> Tensor:
    return -torch.log1p(2.0 * torch.exp(-x))


RAO_KUPPER = ties(_rao_kupper_win, lambda x: _rao_kupper_win(x) + _rao_kupper_win(-x) + math.log(3.0))
DAVIDSON = ties(
    lambda x: -torch.log(1 + torch.exp(-x) + torch.exp(-x / 2)),
    lambda x: -x / 2 - torch.log(1 + torch.exp(-x) + torch.exp(-x / 2)),
)


def plackett_luce(scores: Tensor, ranks: Tensor) -> Tensor:
    left = ranks.unsqueeze(2) <= ranks.unsqueeze(1)
    return (torch.where(left, scores.unsqueeze(1), -torch.inf).logsumexp(2) - scores).sum(1)
