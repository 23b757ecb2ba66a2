"""torch.func over the ops, beside float64 autograd of their definitions; what PyTorch does not allow is refused."""

import op_definitions as definitions
import pytest
import torch
from test_ops_behaviour import GRADCHECKED, case, public
from torch.autograd import forward_ad
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vmap

from instructrl import ops
from instructrl.ops import advantages, logprobs, ppo, ranking, sampling
from instructrl.ops.cases import CASES

pytestmark = pytest.mark.usefixtures("each_backend")

D = torch.float64
_FIRST = {x.op: x.name for x in reversed(CASES) if x.gradients and not x.large} | dict(GRADCHECKED)
CALLS = pytest.mark.parametrize(("op", "name"), sorted(_FIRST.items()))
# Of all elements of a batch alike.
SHARED = ("weight", "bias")


def total(function, arguments, names):
    """A function of what is differentiated to one number that depends on every output with a gradient."""

    def run(*values):
        outputs = function(**arguments | dict(zip(names, values, strict=True)))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = outputs[: 2 if function.__name__.endswith("_and_entropy") else 1]
        return sum((x * (1.0 + i + torch.arange(x.numel()).view(x.shape))).sum() for i, x in enumerate(outputs))

    return run


def prepared(op, name):
    """The op, its definition, arguments in float64, and the names and values of what is differentiated."""
    found = case(op, name)
    arguments = found.make(D)
    if "mask" in arguments:
        # What is not read may be NaN, which the definition's sums of products would spread.
        arguments |= {
            key: torch.where(arguments["mask"], x, 0.5)
            for key, x in arguments.items()
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.shape == arguments["mask"].shape
        }
    definition = getattr(definitions, op.split(".")[1])
    return public(op), definition, arguments, found.gradients, [arguments[key] for key in found.gradients]


def by_autograd(function, arguments, names, values):
    leaves = [x.detach().requires_grad_() for x in values]
    return torch.autograd.grad(total(function, arguments, names)(*leaves), leaves)


@CALLS
def test_gradients(op, name):
    function, definition, arguments, names, values = prepared(op, name)
    places = tuple(range(len(names)))
    found, value = grad_and_value(total(function, arguments, names), argnums=places)(*values)
    torch.testing.assert_close(found, by_autograd(definition, arguments, names, values))
    torch.testing.assert_close(value, total(definition, arguments, names)(*values))


@CALLS
def test_gradients_of_each_sample(op, name):
    function, definition, arguments, names, values = prepared(op, name)
    scales = torch.tensor([1.0, 0.9, 1.2], dtype=D)
    batched = [x if key in SHARED else torch.stack([scale * x for scale in scales]) for key, x in zip(names, values)]  # noqa: B905
    in_dims = tuple(None if key in SHARED else 0 for key in names)
    per_sample = grad(total(function, arguments, names), argnums=tuple(range(len(names))))
    found = vmap(per_sample, in_dims=in_dims)(*batched)
    for sample in range(3):
        own = [x if dim is None else x[sample] for x, dim in zip(batched, in_dims, strict=True)]
        expected = by_autograd(definition, arguments, names, own)
        torch.testing.assert_close(tuple(x[sample] for x in found), expected)


@CALLS
def test_a_batch_of_losses_and_its_gradient(op, name):
    """vmap inside: by torch.func.grad, and by plain autograd."""
    function, definition, arguments, names, values = prepared(op, name)
    scales = torch.tensor([1.0, 0.8], dtype=D)

    def losses(x):
        rest = values[1:]
        return vmap(lambda scale: total(function, arguments, names)(scale * x, *rest))(scales)

    expected = sum(
        scale * by_autograd(definition, arguments, names, [scale * values[0], *values[1:]])[0] for scale in scales
    )
    torch.testing.assert_close(grad(lambda x: losses(x).sum())(values[0]), expected)
    leaf = values[0].clone().requires_grad_()
    losses(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, expected)


def test_jacobians():
    arguments = case("ranking.pairwise_ranking_loss", "cycles").make(D)

    def losses(function):
        return lambda scores: function(scores, arguments["preferred"])[0]

    expected = torch.autograd.functional.jacobian(losses(definitions.pairwise_ranking_loss), arguments["scores"])
    torch.testing.assert_close(jacrev(losses(ranking.pairwise_ranking_loss))(arguments["scores"]), expected)
    # of each of two batches, and by a weight that all rows share
    batch = torch.stack([arguments["scores"], 2 * arguments["scores"]])
    found = vmap(jacrev(losses(ranking.pairwise_ranking_loss)))(batch)
    torch.testing.assert_close(found[0], expected)
    weight, hidden = torch.randn(7, 3, dtype=D), torch.randn(4, 3, dtype=D)
    tokens = torch.tensor([0, 6, 2, 3])
    found = jacrev(lambda w: logprobs.linear_token_logprobs(hidden, w, tokens))(weight)
    expected = torch.autograd.functional.jacobian(
        lambda w: definitions.linear_token_logprobs(hidden, w, tokens), weight
    )
    torch.testing.assert_close(found, expected)


def test_gradients_of_each_sample_of_a_network():
    torch.manual_seed(0)
    network = torch.nn.Linear(5, 1, dtype=D)
    parameters = {key: x.detach() for key, x in network.named_parameters()}
    states, preferred = torch.randn(6, 3, 5, dtype=D), torch.rand(6, 3, 3) < 0.5

    def loss(parameters, states, preferred, function=ranking.pairwise_ranking_loss):
        scores = functional_call(network, parameters, (states,)).squeeze(-1)
        return function(scores.unsqueeze(0), preferred.unsqueeze(0))[0].sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, states, preferred)["weight"]
    for sample in range(6):
        network.zero_grad()
        loss(
            dict(network.named_parameters()), states[sample], preferred[sample], definitions.pairwise_ranking_loss
        ).backward()
        torch.testing.assert_close(found[sample], network.weight.grad)


def test_what_has_no_gradient_is_done_for_each_element_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 2, 5, generator=generator)
    mask = torch.rand(3, 2, 5, generator=generator) < 0.7
    found = vmap(lambda r, v, m: advantages.generalized_advantages(r, v, m))(x[0], x[1], mask)
    white = vmap(advantages.masked_whiten)(x[0], mask)
    drawn = vmap(sampling.sample_tokens, in_dims=(0, None))(x[2], torch.tensor([0.2, 0.9]))
    for element in range(3):
        one = advantages.generalized_advantages(x[0][element], x[1][element], mask[element])
        assert all(torch.equal(a[element], b) for a, b in zip(found, one, strict=True))
        torch.testing.assert_close(white[element], advantages.masked_whiten(x[0][element], mask[element]))
        assert torch.equal(drawn[element], sampling.sample_tokens(x[2][element], torch.tensor([0.2, 0.9])))


@CALLS
def test_forward_mode_is_right_or_refused(op, name, each_backend):
    function, _, arguments, names, values = prepared(op, name)
    run = total(function, arguments, names)
    if each_backend == "reference" and ops.dispatch.OPS[op].composed:
        leaves = [x.requires_grad_() for x in values]
        # beside finite differences
        assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True, check_backward_ad=False)
        return
    message = f"{op}: found a forward-mode derivative, accepted is a first reverse-mode derivative"
    with pytest.raises(RuntimeError, match=message):
        jvp(run, tuple(values), tuple(values))
    for needed in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(values[0].detach().requires_grad_(needed), values[0])
            with pytest.raises(RuntimeError, match=message):
                run(dual, *values[1:])
            # and what has no tangent is computed as ever
            torch.testing.assert_close(run(*values), run(*values))
    assert run(*values).isfinite()


@CALLS
def test_second_derivatives_are_right_or_refused(op, name, each_backend):
    function, definition, arguments, names, values = prepared(op, name)
    run, wanted = total(function, arguments, names), total(definition, arguments, names)
    if each_backend == "reference" and ops.dispatch.OPS[op].composed:
        expected = torch.autograd.functional.hessian(lambda x: wanted(x, *values[1:]), values[0])
        torch.testing.assert_close(hessian(lambda x: run(x, *values[1:]))(values[0]), expected)
        return
    with pytest.raises(RuntimeError, match=f"{op}: found a derivative of a gradient"):
        grad(lambda x: grad(lambda y: run(y, *values[1:]))(x).square().sum())(values[0])


def test_a_lambda_for_each_element_of_a_batch():
    rewards, lam = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = vmap(lambda r, decay: advantages.generalized_advantages(r, r, mask, lam=decay)[0])(rewards, lam)
    for each, r, decay in zip(found, rewards, (0.3, 0.9), strict=True):
        torch.testing.assert_close(each, advantages.generalized_advantages(r, r, mask, lam=decay)[0])
    with pytest.raises(ValueError, match="lam: found a number outside"):
        vmap(lambda r, decay: advantages.generalized_advantages(r, r, mask, lam=decay)[0])(rewards, lam + 0.5)


def test_values_are_checked_for_the_whole_batch():
    logits, tokens = torch.zeros(3, 2, 5), torch.tensor([[0, 1], [4, 5], [0, 0]])
    with pytest.raises(ValueError, match="tokens: found an id out of range"):
        vmap(lambda x, t: logprobs.token_logprobs(x, t, mask=torch.ones(2, dtype=torch.bool)))(logits, tokens)
    with pytest.raises(ValueError, match="weights: found a negative"):
        grad(
            lambda s: ranking.pairwise_ranking_loss(s, torch.ones(1, 2, 2) > 0, weights=-torch.ones(1)).loss_sum.sum()
        )(torch.zeros(1, 2))


def test_logits_are_not_written_over_under_a_transform():
    with pytest.raises(ValueError, match="inplace_backward: found True under a function transform"):
        grad(lambda x: logprobs.token_logprobs(x, torch.tensor([0]), inplace_backward=True).sum())(torch.zeros(1, 3))


def test_metrics_have_no_gradient():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    found = grad(lambda new: ppo.clipped_policy_loss(new, x, x + 1, mask).metrics["ratio_sum"])(x)
    assert torch.equal(found, torch.zeros_like(x))
