"""Gradients, strides, masks, kinks, memory and torch.compile."""

import importlib
import math

import pytest
import torch

from instructrl import ops
from instructrl.ops import advantages, dispatch, likelihood, logprobs, ppo, ranking
from instructrl.ops.cases import CASES
from instructrl.ops.logit_settings import PLAIN
from instructrl.ops.ppo_settings import PolicySettings, ValueSettings

D = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
pytestmark = pytest.mark.usefixtures("each_backend")


def case(op, name):
    return next(case for case in CASES if (case.op, case.name) == (op, name))


def public(op):
    family, function = op.split(".")
    return getattr(importlib.import_module(f"instructrl.ops.{family}"), function)


GRADCHECKED = [
    ("ranking.pairwise_ranking_loss", "cycles"),
    ("ranking.pairwise_ranking_loss", "all, 17x3"),
    ("ranking.tied_ranking_loss", "davidson, 7x4"),
    ("ranking.plackett_luce_loss", "7x4"),
    ("logprobs.token_logprobs", "temperature"),
    ("logprobs.token_logprobs_and_entropy", "temperature"),
    ("logprobs.linear_token_logprobs", "bias and temperature"),
    ("logprobs.linear_token_logprobs_and_entropy", "bias and temperature"),
    ("candidates.candidate_logprobs", "capped and allowed"),
    ("candidates.linear_candidate_logprobs", "masked"),
    ("likelihood.linear_nll_loss", "bias and temperature"),
    ("ppo.clipped_policy_loss", "denominator"),
    ("ppo.clipped_value_loss", "denominator"),
    ("ppo.ppo_loss", "(4, 5)"),
    ("ppo.linear_ppo_loss", "bias and temperature"),
]


def first(output):
    """What carries gradients: the loss of a record, every tensor of a plain tuple."""
    return output[0] if hasattr(output, "_fields") else output


@pytest.mark.parametrize(("op", "name"), GRADCHECKED)
def test_gradcheck(op, name):
    found = case(op, name)
    arguments = found.make(D)
    if "mask" in arguments:
        arguments |= {
            key: torch.where(arguments["mask"], x, 0.5)
            for key, x in arguments.items()
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.shape == arguments["mask"].shape
        }
    inputs = [arguments[key].requires_grad_() for key in found.gradients]

    def function(*values):
        return first(public(op)(**arguments | dict(zip(found.gradients, values, strict=True))))

    assert torch.autograd.gradcheck(function, inputs)


OPS = sorted(dispatch.OPS)
COMPILED = {
    "advantages": "gaps",
    "candidates": "masked",
    "groups": "9 of 2",
    "likelihood": "masked",
    "logprobs": "masked",
    "ppo": "reference",
    "ranking": "cycles",
    "sampling": "capped, allowed and some -inf",
    "statistics": "masked",
    "vocab_shards": "masked",
}
COMPILED_AS = {
    "ppo.linear_ppo_loss": "masked",
    "advantages.masked_whiten": "(4, 5)",
    "ranking.tied_ranking_loss": "davidson, weights",
    "ranking.plackett_luce_loss": "7x4",
    "ppo.kl_token_losses": "k3",
    "ppo.policy_token_losses": "sequences",
    "ppo.value_token_losses": "weights",
    "logprobs.token_logprobs": "capped, allowed and some -inf",
    "logprobs.linear_token_logprobs": "capped, an id excluded",
}


def compiled_case(op):
    return case(op, COMPILED_AS.get(op, COMPILED[op.split(".")[0]]))


def run_with_gradients(function, arguments, gradients):
    arguments = arguments | {key: arguments[key].clone().requires_grad_() for key in gradients}
    output = function(**arguments)
    if gradients:
        tensors = first(output)
        total = tensors.sum() if isinstance(tensors, torch.Tensor) else sum(x.sum() for x in tensors)
        total.backward()
    flat = [output] if isinstance(output, torch.Tensor) else [x for x in output if isinstance(x, torch.Tensor)]
    return flat + [arguments[key].grad for key in gradients]


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_a_graph_break(op):
    found = compiled_case(op)
    arguments = found.make(torch.float32)
    compiled = torch.compile(public(op), fullgraph=True, backend="aot_eager")
    expected = run_with_gradients(public(op), arguments, found.gradients)
    for actual, value in zip(run_with_gradients(compiled, arguments, found.gradients), expected, strict=True):
        torch.testing.assert_close(actual, value)
    torch.compiler.reset()


def test_inductor_compiles_the_ranking_loss():
    arguments = case("ranking.pairwise_ranking_loss", "cycles").make(torch.float32)
    compiled = torch.compile(ranking.pairwise_ranking_loss, fullgraph=True)
    for value, target in zip(compiled(**arguments), ranking.pairwise_ranking_loss(**arguments), strict=True):
        torch.testing.assert_close(value, target)


def test_a_compiled_op_refuses_a_token_out_of_range():
    compiled = torch.compile(logprobs.token_logprobs, fullgraph=True, backend="aot_eager")
    mask = torch.tensor([True, False])
    assert compiled(torch.zeros(2, 4), torch.tensor([3, 9]), mask=mask).tolist() == pytest.approx([-math.log(4), 0])
    with pytest.raises(RuntimeError, match="tokens: found an id out of range"):
        compiled(torch.zeros(2, 4), torch.tensor([4, 9]), mask=mask)


@pytest.mark.parametrize("op", OPS)
def test_no_value_is_read_off_an_accelerator(op):
    # The meta device has no values: reading one, or a shape that depends on one, raises.
    found = compiled_case(op)
    arguments = {k: x.to("meta") if isinstance(x, torch.Tensor) else x for k, x in found.make(torch.float32).items()}
    with ops.use_backend("reference"):
        results = run_with_gradients(public(op), arguments, found.gradients)
    assert {x.device.type for x in results} == {"meta"}


def test_values_are_read_on_an_accelerator_when_asked():
    with ops.use_backend("reference"), ops.validate(), pytest.raises(RuntimeError, match="meta"):
        logprobs.token_logprobs(torch.zeros(2, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))


def test_a_token_out_of_range_gives_nan_where_values_are_not_read():
    tokens, logits = torch.tensor([0, 4, -1]), torch.zeros(3, 4)
    plain = dispatch.OPS["logprobs.token_logprobs"].reference(logits, tokens, None, None, 1.0, PLAIN, False)
    linear = dispatch.OPS["logprobs.linear_token_logprobs"].reference(
        logits, torch.zeros(4, 4), None, tokens, None, 1.0, PLAIN, 999
    )
    assert plain.isnan().tolist() == linear.isnan().tolist() == [False, True, True]


def test_packed_score_is_added_before_a_sequence_that_starts_masked():
    zeros, mask = torch.zeros(5), torch.tensor([True, True, False, True, False])
    found = advantages.ppo_advantages(
        zeros, zeros, zeros, torch.tensor([1.0, 2.0]), mask, kl_coef=0.1, lam=0.5, cu_seqlens=torch.tensor([0, 2, 5])
    )
    assert found.rewards.tolist() == [0, 1, 0, 2, 0]
    assert found.advantages.tolist() == [0.5, 1, 0, 2, 0]


def test_autocast_leaves_the_linear_op_in_float32():
    arguments = case("logprobs.linear_token_logprobs", "5x8x257").make(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run_with_gradients(logprobs.linear_token_logprobs, arguments, ("hidden", "weight"))
    expected = run_with_gradients(logprobs.linear_token_logprobs, arguments, ("hidden", "weight"))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


LOSS_OPS = [op for op in OPS if op.startswith("ppo.") and not op.endswith("token_losses")]
TOKEN_LOSS_OPS = [op for op in OPS if op.endswith("token_losses")]


@pytest.mark.parametrize("op", LOSS_OPS)
def test_no_counted_token_gives_zero_loss_and_zero_gradient(op):
    found = case(op, "all masked")
    arguments = found.make(torch.float32)
    loss, *gradients = run_with_gradients(lambda **kw: public(op)(**kw)[0], arguments, found.gradients)
    assert float(loss) == 0
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert all(float(x) == 0 for x in public(op)(**arguments).metrics.values())


@pytest.mark.parametrize("op", TOKEN_LOSS_OPS)
def test_tokens_that_do_not_count_have_no_loss_and_no_gradient(op):
    found = case(op, "all masked")
    for x in run_with_gradients(public(op), found.make(torch.float32), found.gradients):
        assert torch.equal(x, torch.zeros_like(x))


def test_the_likelihood_of_nothing_is_zero_with_zero_gradient():
    found = case("likelihood.linear_nll_loss", "all masked")
    for value in run_with_gradients(likelihood.linear_nll_loss, found.make(torch.float32), found.gradients):
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("count", [7, torch.tensor(7), torch.tensor(2.5)])
def test_the_likelihood_is_divided_by_the_count_passed_in(count):
    arguments = case("likelihood.linear_nll_loss", "masked").make(D)
    whole = likelihood.linear_nll_loss(**arguments) * arguments["mask"].sum()
    torch.testing.assert_close(likelihood.linear_nll_loss(**arguments, num_tokens=count) * count, whole)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["expanded gradient", "transposed", "swapped", "sliced", "expanded tokens"])
def test_strides_do_not_matter(layout, inplace):
    logits = torch.randn(6, 4, 11, generator=GENERATOR)
    tokens = torch.randint(0, 11, (6, 4), generator=GENERATOR)
    if layout == "expanded tokens":
        tokens = tokens[:1].expand(6, 4)
    expected_input = logits.clone().requires_grad_()
    weight = torch.tensor(0.3).expand(6, 4) if layout == "expanded gradient" else torch.randn(4, 6).t()
    logprobs.token_logprobs(expected_input, tokens.contiguous()).backward(weight.contiguous())
    base = logits.clone()
    if layout == "transposed":
        base = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "swapped":
        base = logits.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "sliced":
        base = torch.cat([logits, logits], dim=2)[..., :11]
    strided = base.detach().requires_grad_()
    # The clone stands for a model's output: in place means over an intermediate, never over a leaf.
    source = strided.as_strided(strided.shape, strided.stride()) * 1.0 if inplace else strided
    logprobs.token_logprobs(source, tokens, inplace_backward=inplace).backward(weight)
    torch.testing.assert_close(strided.grad, expected_input.grad)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("name", ["masked", "temperature", "5x257"])
def test_inplace_backward_writes_the_gradient_over_the_logits(name, with_entropy):
    function = logprobs.token_logprobs_and_entropy if with_entropy else logprobs.token_logprobs
    found = case("logprobs.token_logprobs", name)
    arguments = found.make(torch.float32)
    (*_, expected) = run_with_gradients(function, arguments, ("logits",))
    leaf = arguments["logits"].clone().requires_grad_()
    logits = leaf.clone()
    address = logits.data_ptr()
    output = function(**arguments | {"logits": logits}, inplace_backward=True)
    total = output.sum() if isinstance(output, torch.Tensor) else output[0].sum() + output[1].sum()
    total.backward(retain_graph=True)
    assert logits.data_ptr() == address
    torch.testing.assert_close(leaf.grad, expected)
    torch.testing.assert_close(logits.detach(), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


QUARTER = PolicySettings(clip_low=0.25, clip_high=0.25)


def eager_policy_loss(new, old, advantage):
    ratio = (new - old).exp()
    return torch.maximum(-advantage * ratio, -advantage * torch.clamp(ratio, 0.75, 1.25)).mean()


def test_policy_gradient_at_the_clip_bounds_is_that_of_eager_pytorch():
    new = torch.tensor([1.25, 0.75, 1.25, 0.75, 1.0, 1.5, 0.5, 1.5, 0.5], dtype=D).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0, 0.0, 1.0, -1.0], dtype=D)
    gradients = []
    for function in (
        eager_policy_loss,
        lambda n, o, a: ppo.clipped_policy_loss(n, o, a, torch.ones(9, dtype=torch.bool), settings=QUARTER).loss,
    ):
        leaf = new.clone().requires_grad_()
        function(leaf, torch.zeros(9, dtype=D), advantage).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_policy_gradient_is_that_of_eager_pytorch_where_rounding_ties_the_branches():
    ratios = [torch.tensor(1.25).log()]
    for _ in range(15):
        ratios.append(torch.nextafter(ratios[-1], torch.tensor(1.0)))
    new = torch.stack(ratios).repeat_interleave(64)
    advantage = torch.linspace(-2.0, 2.0, 64).repeat(16)
    eager, ours = new.clone().requires_grad_(), new.clone().requires_grad_()
    eager_policy_loss(eager, torch.zeros(1024), advantage).backward()
    mask = torch.ones(1024, dtype=torch.bool)
    ppo.clipped_policy_loss(ours, torch.zeros(1024), advantage, mask, settings=QUARTER).loss.backward()
    assert torch.equal(ours.grad, eager.grad)
    half = (eager.grad * 1024 / (advantage * new.exp())).abs()
    assert int(((half > 0.4) & (half < 0.6)).sum()) > 0


def test_value_gradient_at_the_clip_bounds_and_ties_is_that_of_eager_pytorch():
    # old 0, range 0.25: inside, at both bounds, outside; and errors of equal size on both sides of the target.
    values = torch.tensor([0.125, 0.25, -0.25, 0.5, -0.5, 0.75, -0.75, 1.0], dtype=D)
    returns = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, 0.5, -0.5, 0.0], dtype=D)
    old, leaves = torch.zeros(8, dtype=D), []
    for eager in (True, False):
        leaf = values.clone().requires_grad_()
        leaves.append(leaf)
        if eager:
            clipped = torch.clamp(leaf, old - 0.25, old + 0.25)
            (0.5 * torch.maximum((leaf - returns) ** 2, (clipped - returns) ** 2)).mean().backward()
        else:
            mask = torch.ones(8, dtype=torch.bool)
            ppo.clipped_value_loss(leaf, old, returns, mask, settings=ValueSettings(cliprange=0.25)).loss.backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=0, atol=0)
    assert float(leaves[0].grad[5]) == 0.5 * 0.25 / 8


def test_a_ratio_that_overflows_gives_no_nan():
    new = torch.full((3,), 200.0, requires_grad=True)
    advantage = torch.tensor([1.0, 0.0, 0.5])
    loss = ppo.clipped_policy_loss(new, torch.zeros(3), advantage, torch.ones(3, dtype=torch.bool)).loss
    loss.backward()
    assert float(loss) == pytest.approx(-1.2 * 1.5 / 3)
    assert new.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_nan_that_counts_is_seen():
    new = torch.tensor([0.0, math.nan], requires_grad=True)
    loss = ppo.clipped_policy_loss(new, torch.zeros(2), torch.ones(2), torch.ones(2, dtype=torch.bool)).loss
    loss.backward()
    assert loss.isnan()
    assert new.grad.isnan().tolist() == [False, True]


def test_micro_batches_add_up_to_the_batch():
    arguments = case("ppo.ppo_loss", "(4, 5)").make(D)
    whole = ppo.ppo_loss(**arguments)
    count = arguments["mask"].sum()
    parts = [
        ppo.ppo_loss(**{key: x[rows] for key, x in arguments.items()}, num_tokens=count)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert float(parts[0].loss + parts[1].loss) == pytest.approx(float(whole.loss), rel=1e-14)
    by_int = ppo.ppo_loss(**arguments, num_tokens=int(count))
    assert torch.equal(by_int.loss, whole.loss)


def test_whitening_by_the_sum_of_two_ranks():
    mask = torch.rand(6, 9, generator=GENERATOR) < 0.7
    inputs = [torch.randn(6, 9, dtype=D, generator=GENERATOR) for _ in range(3)]
    scores = torch.randn(6, dtype=D, generator=GENERATOR)
    whole = advantages.ppo_advantages(*inputs, scores, mask, kl_coef=0.1)
    expected = advantages.masked_whiten(whole.advantages, mask)
    ranks = [slice(0, 2), slice(2, 6)]
    found = [advantages.ppo_advantages(*(x[r] for x in inputs), scores[r], mask[r], kl_coef=0.1) for r in ranks]
    stats = found[0].stats + found[1].stats
    actual = [advantages.masked_whiten(x.advantages, mask[r], stats=stats) for x, r in zip(found, ranks, strict=True)]
    torch.testing.assert_close(torch.cat(actual), expected)


def test_the_linear_references_never_hold_all_logits():
    num_rows, num_classes, workspace = 64, 5000, 16 * 5000 * 4
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for x in output if isinstance(output, tuple | list) else [output]:
                if isinstance(x, torch.Tensor):
                    sizes.append(x.untyped_storage().nbytes())
            return output

    hidden = torch.randn(num_rows, 4, requires_grad=True)
    weight = torch.randn(num_classes, 4, requires_grad=True)
    tokens, vector = torch.randint(0, num_classes, (num_rows,)), torch.zeros(num_rows)
    mask = torch.ones(num_rows, dtype=torch.bool)
    with ops.use_backend("reference"), Watch():
        logprobs.linear_token_logprobs_and_entropy(hidden, weight, tokens, max_workspace_bytes=workspace)[
            0
        ].sum().backward()
        ppo.linear_ppo_loss(
            hidden, weight, tokens, vector, vector, vector, vector, vector, mask, max_workspace_bytes=workspace
        ).loss.backward()
    # A chunk's logits and one temporary fill the workspace together.
    assert max(sizes) == workspace // 2 < num_rows * num_classes * 4


def test_old_and_new_logprobs_of_the_same_batch_are_the_same_bits():
    arguments = case("logprobs.linear_token_logprobs", "masked").make(torch.float32)
    with torch.no_grad():
        old = logprobs.linear_token_logprobs(**arguments)
    arguments["hidden"].requires_grad_()
    assert torch.equal(logprobs.linear_token_logprobs(**arguments), old)


def test_preferred_from_ranks():
    found = ranking.preferred_from_ranks(torch.tensor([[1, 0, 1, -1]]))
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, 1, 0] = expected[0, 1, 2] = True
    assert torch.equal(found, expected)
    assert torch.equal(ranking.preferred_from_ranks(torch.tensor([[1.5, 0.5, 1.5, math.nan]])), expected)
