"""verl's advantage estimators: GAE with what is behind it, and those of whole responses within their group."""

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from instructrl.integrations.adapter import Replacement
from instructrl.integrations.selfcheck import Draw, Example, Sizes
from instructrl.ops import advantages as ops
from instructrl.ops.advantage_settings import GroupSettings, WhitenSettings
from instructrl.ops.groups import group_advantages

_MODULE = "verl.trainer.ppo.core_algos"


def counted(mask: Tensor) -> Tensor | None:
    """The mask as bool; None where it has other numbers than 0 and 1, which the host multiplies with."""
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype.is_floating_point or not mask.numel():
        found = mask != 0
        return found if torch.equal(found.to(mask.dtype), mask) else None
    low, high = mask.aminmax()
    return mask.to(torch.bool) if int(low) >= 0 and int(high) <= 1 else None


def plain(*tensors: Tensor) -> bool:
    """Whether the host computes in the precision of ours, and returns it: float32 or float64, all the same."""
    return tensors[0].dtype in (torch.float32, torch.float64) and len({x.dtype for x in tensors}) == 1


def _discounts(*numbers: Any) -> bool:
    """Whether ours take them, which are from 0 to 1 there."""
    return all(0.0 <= number <= 1.0 for number in numbers)


def _countable(mask: Tensor) -> Tensor | None:
    """`counted` where two tokens are: of fewer there is no variance, and the host raises."""
    found = counted(mask)
    return found if found is not None and int(mask.sum()) > 1 else None


def _carried(x: Tensor, mask: Tensor) -> Tensor:
    """The number of the next counted position, 0 behind the last one, where the mask is False and x is 0."""
    rises = mask.view(torch.int8).diff(dim=1)
    if not rises.numel() or int(rises.amax()) < 1:
        return x
    width = mask.shape[1]
    # A third of the time that whole numbers of 64 bits take.
    places = torch.where(mask, torch.arange(width, device=mask.device, dtype=torch.int32), width)
    return pad(x, (0, 1)).gather(1, places.flip(1).cummin(1).values.flip(1).to(torch.int64))


def _whitened(x: Tensor, selected: Tensor, mask: Tensor, center: bool = True) -> Tensor:
    """Everywhere, by the counted positions. selected: x where the mask is True, else 0."""
    norm = torch.linalg.vector_norm(selected, dtype=torch.float64)
    stats = torch.stack([selected.sum(dtype=torch.float64), norm.square(), mask.sum()])
    settings = WhitenSettings(center=center)
    return ops.masked_whiten(x, torch.ones_like(mask), stats=stats, settings=settings)


def _gae(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_gae_advantage_return(
        token_level_rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: Any, lam: Any
    ) -> tuple[Tensor, Tensor]:
        mask = _countable(response_mask)
        if mask is None or not plain(token_level_rewards, values) or not _discounts(gamma, lam):
            return own(token_level_rewards, values, response_mask, gamma, lam)
        inputs = (token_level_rewards.detach(), values.detach())
        found, _ = ops.generalized_advantages(*inputs, mask, gamma=gamma, lam=lam)
        everywhere = _carried(found, mask)
        return _whitened(everywhere, found, mask), everywhere + inputs[1]

    return compute_gae_advantage_return


def _masked_whiten(own: Callable[..., Any]) -> Callable[..., Any]:
    def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        found = _countable(mask)
        if found is None or values.requires_grad or not plain(values) or found.shape != values.shape:
            return own(values, mask, shift_mean)
        return _whitened(values, torch.where(found, values, 0.0), found, shift_mean)

    return masked_whiten


def _reinforce_plus_plus(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_reinforce_plus_plus_outcome_advantage(
        token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        mask = _countable(response_mask)
        computes = config is not None and plain(token_level_rewards) and _discounts(config.gamma)
        if mask is None or config is None or not computes:
            return own(token_level_rewards, response_mask, config, **kwargs)
        rewards = token_level_rewards.detach()
        # Without a critic the advantages of a lambda of 1 are the discounted sums of rewards.
        nothing = torch.zeros_like(rewards)
        returns, _ = ops.generalized_advantages(rewards, nothing, mask, gamma=config.gamma, lam=1.0)
        return ops.masked_whiten(returns, mask), returns

    return compute_reinforce_plus_plus_outcome_advantage


def _within_groups(scores: Tensor, index: Sequence[Any], settings: GroupSettings, alone: Tensor) -> Tensor:
    """alone: what a score becomes that is the only one of its group."""
    names = [index[i] for i in range(scores.shape[0])]
    sizes, numbers = Counter(names), {}
    groups = torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], device=scores.device)
    found = group_advantages(scores, groups, num_groups=len(numbers), settings=settings)
    if 1 not in sizes.values():
        return found
    return torch.where(torch.tensor([sizes[name] == 1 for name in names], device=scores.device), alone, found)


def _scores(token_level_rewards: Tensor) -> Tensor:
    return token_level_rewards.detach().sum(dim=-1)


def _grpo(own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_grpo_outcome_advantage(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Any,
        epsilon: float = 1e-6,
        norm_adv_by_std_in_grpo: bool = True,
        config: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if not plain(token_level_rewards) or not len(token_level_rewards):
            return own(token_level_rewards, response_mask, index, epsilon, norm_adv_by_std_in_grpo, config)
        scores = _scores(token_level_rewards)
        scale, divisor = ("deviation", 1.0 + epsilon) if norm_adv_by_std_in_grpo else ("none", 1.0)
        settings = GroupSettings(scale=scale, epsilon=epsilon)
        found = _within_groups(scores, index, settings, scores / divisor).unsqueeze(-1) * response_mask
        return found, found

    return compute_grpo_outcome_advantage


def _rloo(own: Callable[..., Any]) -> Callable[..., Any]:
    settings = GroupSettings(baseline="leave_one_out", scale="none")

    def compute_rloo_outcome_advantage(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Any,
        epsilon: float = 1e-6,
        config: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        if not plain(token_level_rewards) or not len(token_level_rewards):
            return own(token_level_rewards, response_mask, index, epsilon, config, **kwargs)
        scores = _scores(token_level_rewards)
        found = _within_groups(scores, index, settings, scores).unsqueeze(-1) * response_mask
        return found, found

    return compute_rloo_outcome_advantage


def _reinforce_plus_plus_baseline(own: Callable[..., Any]) -> Callable[..., Any]:
    settings = GroupSettings(scale="none")

    def compute_reinforce_plus_plus_baseline_outcome_advantage(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Any,
        epsilon: float = 1e-6,
        config: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        mask = _countable(response_mask)
        if mask is None or not plain(token_level_rewards):
            return own(token_level_rewards, response_mask, index, epsilon, config, **kwargs)
        scores = _scores(token_level_rewards)
        found = _within_groups(scores, index, settings, scores).unsqueeze(-1).expand(mask.shape)
        found = ops.masked_whiten(found, mask)
        return found, found

    return compute_reinforce_plus_plus_baseline_outcome_advantage


def _registered(name: str) -> Callable[[Any], Callable[[], None]]:
    """verl looks its estimators up in a registry, all but GAE and GRPO."""

    def put(ours: Any) -> Callable[[], None]:
        registry = importlib.import_module(_MODULE).ADV_ESTIMATOR_REGISTRY
        own = registry[name]
        registry[name] = ours
        return lambda: registry.__setitem__(name, own)

    return put


def _gapped(draw: Draw) -> Tensor:
    """A mask of whole numbers with gaps and with beginnings and ends that do not count."""
    shape = (draw.sizes.batch, draw.sizes.tokens)
    return (draw.lengths(*shape) & (draw.ids(*shape, below=4) > 0)).to(torch.int64)


def _trajectories(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    ends = draw.lengths(*shape).to(torch.int64)
    return [
        Example((draw.normal(*shape), draw.normal(*shape), ends, 1.0, 1.0)),
        Example((draw.normal(*shape), draw.normal(*shape), _gapped(draw), 0.99, 0.95)),
        Example((draw.normal(*shape), draw.normal(*shape), ends, 1.1, 0.95)),
    ]


def _whitenings(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    return [
        Example((draw.normal(*shape), _gapped(draw))),
        Example((draw.normal(*shape), draw.lengths(*shape), False)),
    ]


def _discounted(draw: Draw) -> list[Example]:
    shape = (draw.sizes.batch, draw.sizes.tokens)
    return [Example((draw.normal(*shape), _gapped(draw), SimpleNamespace(gamma=gamma))) for gamma in (1.0, 0.9, 1.1)]


def _outcomes(draw: Draw, *more: dict[str, Any]) -> list[Example]:
    """Scores at the last token, in groups of two, one alone where there are more than two."""
    shape = (draw.sizes.batch, draw.sizes.tokens)
    index = [f"prompt-{i // 2}" for i in range(shape[0])]
    index[-1] = "alone"
    found = []
    for others in more or ({},):
        mask = draw.lengths(*shape).to(torch.int64)
        rewards = draw.normal(*shape) * (mask.cumsum(1) == mask.sum(1, keepdim=True)) * mask
        found.append(Example((rewards, mask, index), others))
    return found


def _grpo_outcomes(draw: Draw) -> list[Example]:
    return _outcomes(draw, {}, {"norm_adv_by_std_in_grpo": False}, {"epsilon": 1e-4})


_BATCH = Sizes(batch=256, tokens=1024)

ROWS = (
    Replacement(
        name=f"{_MODULE}:compute_gae_advantage_return",
        signature="(token_level_rewards, values, response_mask, gamma, lam)",
        sources=("fabcb104a5e4",),
        stand_in=_gae,
        examples=_trajectories,
        measured=_BATCH,
    ),
    Replacement(
        name="verl.utils.torch_functional:masked_whiten",
        signature="(values, mask, shift_mean=True)",
        sources=("475d37f371be",),
        stand_in=_masked_whiten,
        examples=_whitenings,
        measured=_BATCH,
    ),
    Replacement(
        name=f"{_MODULE}:compute_grpo_outcome_advantage",
        signature="(token_level_rewards, response_mask, index, epsilon=1e-06, norm_adv_by_std_in_grpo=True, "
        "config=None)",
        sources=("1ae54c999b7d",),
        stand_in=_grpo,
        examples=_grpo_outcomes,
        measured=_BATCH,
    ),
    Replacement(
        name=f"{_MODULE}:compute_rloo_outcome_advantage",
        signature="(token_level_rewards, response_mask, index, epsilon=1e-06, config=None, **kwargs)",
        sources=("a7377d83e250",),
        stand_in=_rloo,
        examples=_outcomes,
        put=_registered("rloo"),
        measured=_BATCH,
    ),
    Replacement(
        name=f"{_MODULE}:compute_reinforce_plus_plus_outcome_advantage",
        signature="(token_level_rewards, response_mask, config=None, **kwargs)",
        sources=("f5cf999027e8",),
        stand_in=_reinforce_plus_plus,
        examples=_discounted,
        put=_registered("reinforce_plus_plus"),
        measured=_BATCH,
    ),
    Replacement(
        name=f"{_MODULE}:compute_reinforce_plus_plus_baseline_outcome_advantage",
        signature="(token_level_rewards, response_mask, index, epsilon=1e-06, config=None, **kwargs)",
        sources=("67d2569cc9f7",),
        stand_in=_reinforce_plus_plus_baseline,
        examples=_outcomes,
        put=_registered("reinforce_plus_plus_baseline"),
        measured=_BATCH,
    ),
)
