"""Random arguments: every op returns, or raises ValueError or TypeError that names one of its arguments."""

import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructrl.ops import advantages, aggregation, groups, likelihood, logprobs, ppo, ranking, sampling

OPS = {
    function.__name__: function
    for function in (
        ranking.pairwise_ranking_loss,
        ranking.tied_ranking_loss,
        ranking.plackett_luce_loss,
        ranking.preferred_from_ranks,
        ranking.tied_from_ranks,
        logprobs.token_logprobs,
        logprobs.token_logprobs_and_entropy,
        logprobs.linear_token_logprobs,
        logprobs.linear_token_logprobs_and_entropy,
        likelihood.linear_nll_loss,
        advantages.generalized_advantages,
        advantages.ppo_advantages,
        advantages.masked_whiten,
        groups.group_advantages,
        ppo.clipped_policy_loss,
        ppo.clipped_value_loss,
        ppo.ppo_loss,
        ppo.policy_token_losses,
        ppo.value_token_losses,
        ppo.kl_token_losses,
        aggregation.sequence_log_ratios,
        aggregation.token_weights,
        ppo.linear_ppo_loss,
        sampling.sample_tokens,
    )
}
B, T, D, V = 2, 3, 4, 5
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64)
# Right shape and kind of each argument; what is not here is a number.
FLOATS = {
    "logits": (B, T, V),
    "hidden": (B, T, D),
    "weight": (V, D),
    "bias": (V,),
    "uniforms": (B,),
    **dict.fromkeys(("x", "logprobs", "old_logprobs", "ref_logprobs", "values", "old_values", "returns"), (B, T)),
    **dict.fromkeys(("advantages", "rewards"), (B, T)),
}


def right(op: str, name: str) -> object:
    """An argument that the op takes."""
    if name == "scores":
        return torch.zeros((B,) if op in ("ppo_advantages", "group_advantages") else (B, T))
    if name == "logits" and op == "sample_tokens":
        return torch.zeros(B, V)
    if name in FLOATS:
        return torch.zeros(FLOATS[name])
    return {
        "tokens": torch.zeros(B, T, dtype=torch.int64),
        "mask": torch.ones(B, T, dtype=torch.bool),
        "preferred": torch.zeros(B, T, T, dtype=torch.bool),
        "tied": torch.zeros(B, T, T, dtype=torch.bool),
        "ranks": torch.zeros(B, T),
        "groups": torch.zeros(B, dtype=torch.int64),
        "num_groups": 1,
        "kl_coef": 0.0,
        "aggregation": "token_mean",
    }[name]


_shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw) -> torch.Tensor:
    """Any shape and dtype, with values that are out of range for something."""
    shape, dtype = draw(_shapes), draw(st.sampled_from(DTYPES))
    device = draw(st.sampled_from(["cpu", "cpu", "cpu", "meta"]))
    fill = draw(st.sampled_from([0, 1, -1, 100, float("nan"), float("inf")]))
    if fill not in (0, 1) and not dtype.is_floating_point and not dtype.is_complex:
        fill = {-1: -1, 100: 100}.get(fill, 2**31 - 1)
    made = torch.full(shape, fill, device=device, dtype=dtype)
    return made.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else made


_strange = st.one_of(
    tensors(),
    st.none(),
    st.integers(-3, 3),
    st.integers(2**62, 2**70),
    st.floats(),
    st.sampled_from(["1", [0.0, 1.0], True, (), {}]),
)


@st.composite
def calls(draw, op: str) -> dict[str, object]:
    """Arguments of an op: one or two of them are anything, or others than are needed are given."""
    names = list(inspect.signature(OPS[op]).parameters)
    needed = [n for n in names if inspect.signature(OPS[op]).parameters[n].default is inspect.Parameter.empty]
    arguments = {name: right(op, name) for name in needed}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        arguments[name] = draw(_strange)
    return arguments


@pytest.mark.parametrize("op", OPS)
@settings(derandomize=True, deadline=None, database=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_arguments(op, data):
    arguments = data.draw(calls(op))
    message = ""
    try:
        OPS[op](**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
    assert not message or any(name in message for name in inspect.signature(OPS[op]).parameters), message


@pytest.mark.parametrize("op", OPS)
def test_the_right_arguments_are_taken(op):
    """Otherwise every example would be refused for the same reason."""
    parameters = inspect.signature(OPS[op]).parameters
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    assert OPS[op](**{name: right(op, name) for name in needed}) is not None
