"""Compiled backends beyond the cases: private ops as torch sees them, bits, strides, memory, offsets, backwards."""

import math
import re
from pathlib import Path

import op_definitions as definitions
import pytest
import torch
from op_accuracy import assert_no_less_accurate
from op_backends import COMPILED, PREFIXES, on, place_id
from test_ops_cases import evaluate, public

from instructrl import ops
from instructrl.ops import advantages, compiled_linear, linear_chunks, logprobs, ppo, private_ops
from instructrl.ops.cases import CASES
from instructrl.ops.compiled import candidates, statistics, vocab_shards
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, ValueSettings, flat

SETTINGS = flat(PolicySettings(dual_clip=3.0), ValueSettings(), 0.1, KLSettings(estimator="k2", input_clamp=1.0), 0.3)
ROOT = Path(__file__).parent.parent.parent
_PYTHON_SCHEMAS = {**candidates.SCHEMAS, **statistics.SCHEMAS, **vocab_shards.SCHEMAS}
ALL_SCHEMAS = {**private_ops.SCHEMAS, **compiled_linear.SCHEMAS, **_PYTHON_SCHEMAS}
SMALL = [case for case in CASES if not case.large]
pytestmark = pytest.mark.skipif(not COMPILED, reason="no compiled backend is here")


@pytest.fixture(params=COMPILED, ids=place_id)
def place(request):
    with ops.use_backend(request.param[0]):
        yield request.param


def case(op, name):
    return next(case for case in CASES if (case.op, case.name) == (op, name))


def test_the_schemas_in_cpp_are_those_in_python():
    text = (ROOT / "csrc" / "schemas.h").read_text(encoding="utf-8")
    pairs = re.findall(r'\{"(\w+)",\s*((?:"[^"]*"\s*)+)\}', text)
    found = {name: "".join(re.findall(r'"([^"]*)"', parts)) for name, parts in pairs}
    assert found == private_ops.SCHEMAS


@pytest.mark.parametrize("name", sorted(ALL_SCHEMAS))
def test_the_registered_schema_is_the_one_of_the_table(place, name):
    schema = ALL_SCHEMAS[name]
    prefix = PREFIXES[place[0]]
    expected = torch._C.parse_schema(f"{private_ops.NAMESPACE}::{prefix}{name}{schema}")
    assert str(private_ops.get(prefix, name)._schema) == str(expected)


class Drawn:
    """Tensors as they come in practice: slices, expanded gradients, masks."""

    def __init__(self, device):
        g = torch.Generator().manual_seed(0)
        self.device = device
        self.x = [torch.randn(4, 6, generator=g).to(device) for _ in range(7)]
        self.mask = (torch.rand(4, 6, generator=g) < 0.7).to(device)
        self.logits = torch.randn(4, 7, 33, generator=g).to(device)[:, :-1]
        self.tokens = torch.randint(0, 33, (4, 6), generator=g).to(device)
        self.allowed = torch.arange(33, device=device) < 30
        forward = private_ops.get(PREFIXES[ops.dispatch._forced], "token_logprobs")
        _, self.entropy, self.normalizers = forward(self.logits, self.tokens, self.mask, self.allowed, 0.7, 0.1, True)
        self.upstream = torch.tensor(0.3, device=device).expand(4, 6)
        self.count = torch.tensor(20.0, dtype=torch.float64, device=device)
        self.hidden = torch.randn(4, 6, 5, generator=g).to(device)
        self.weight = torch.randn(33, 5, generator=g).to(device)
        self.preferred = torch.rand(4, 6, 6, generator=g).to(device) < 0.5
        self.uniforms = torch.rand(4, generator=g).to(device)


def of_rankings(d):
    margins = d.x[1][:, :1, None].expand(4, 6, 6)
    return {
        "pairwise_ranking_loss": (d.x[0], d.preferred),
        "paired_comparison_loss": (d.x[0], d.preferred, ~d.preferred, margins, None, 0.1, 0.2, 0.3, 0.5, -1.0),
        "plackett_luce_loss": (d.x[0], d.tokens.t().contiguous().t()),
    }


def of_logits(d):
    backward = (d.tokens, d.mask, d.allowed, d.normalizers, d.entropy, d.upstream, d.x[0], 0.7, 0.1)
    ids = torch.stack([d.tokens, 32 - d.tokens, d.tokens], -1)
    each = d.upstream.unsqueeze(-1).expand(4, 6, 3)
    return {
        "token_logprobs": (d.logits, d.tokens, d.mask, d.allowed, 0.7, 0.1, True),
        "token_logprobs_backward": (d.logits, *backward),
        "token_logprobs_backward_": (d.logits.clone(), *backward),
        "sample_tokens": (d.logits[:, 0], d.uniforms, d.allowed, 0.7, 0.1),
        "row_statistics": (d.logits, d.tokens, d.mask, d.allowed, d.normalizers, 0.7, 0.1),
        "candidate_logprobs": (d.logits, ids, d.mask, d.allowed, 0.7, 0.1),
        "candidate_logprobs_backward": (d.logits, ids, d.mask, d.allowed, d.normalizers, each, 0.7, 0.1),
    }


def of_tokens(d):
    x, mask, count = d.x, d.mask, d.count
    groups = torch.tensor([1, 0, 1, 1], device=d.device)
    return {
        "generalized_advantages": (x[0], x[1].t().contiguous().t(), mask, 0.9, 0.8, None),
        "ppo_advantages": (*x[:3], x[3][:, 0], mask, 0.02, 0.9, 0.8, None),
        "general_advantages": (
            *(x[0], mask, None, *x[1:3], x[3][:, 0], mask, None, x[4][:, 0], None, None),
            *(0.1, 2, 3.0, math.inf, 0.9, 0.8, 1.0, True, False),
        ),
        "masked_whiten": (x[0], mask, None, True, 1, 1e-8, 0),
        "group_whiten": (x[0], mask, groups, 3, False, 0, 1e-5, 2),
        "group_advantages": (x[0][:, 0], groups, 2, 0, True, 1, 1e-4),
        "clipped_policy_loss": (*x[:3], mask, None, 0.2, 0.3),
        "clipped_value_loss": (*x[:3], mask, count, 0.2),
        "ppo_loss": (*x[:6], mask, x[6], count, 0.2, 0.3, 0.2, 0.1, 0.3),
        "general_ppo_loss": (x[0], None, x[1], x[2], *x[3:6], mask, x[6], x[0].abs(), count, SETTINGS, True),
    }


def of_heads(d):
    linear, wanted = (d.hidden, d.weight, None, d.tokens, d.mask), [True, True, False]
    # Nothing kept: kept logits have rows and columns that are never written.
    kept = d.x[0].new_zeros(24, 64)
    gradients = (d.normalizers.view(-1, 2), d.entropy, kept, d.upstream, d.x[0])
    ppo = (*linear[:4], *d.x[:5], d.mask, d.x[5], None, None, d.count, flat(), True)
    return {
        "linear_token_statistics": (*linear, 0.7, 0.1, 8192),
        "linear_shard_rows": (*linear, 0.7, 0.1, 8192, True),
        "linear_shard_gradients": (*linear, d.normalizers, d.entropy, d.upstream, d.x[0], 0.7, 0.1, 8192, wanted),
        "linear_token_logprobs": (*linear, 0.7, 0.1, 8192, True, False),
        "linear_token_logprobs_backward": (*linear, *gradients, 0.7, 0.1, 2**20, wanted),
        "linear_nll_loss": (*linear, d.x[0].abs(), d.count, 0.7, 0.1, 2**20, wanted),
        "linear_ppo_loss": (*ppo, 0.7, 0.1, 2**20, wanted),
    }


def private_arguments(name, device):
    drawn = Drawn(device)
    made = {**of_rankings(drawn), **of_logits(drawn), **of_tokens(drawn), **of_heads(drawn)}
    return made[name]


@pytest.mark.parametrize("name", sorted(ALL_SCHEMAS))
def test_opcheck(place, name):
    backend, device = place
    torch.library.opcheck(private_ops.get(PREFIXES[backend], name), private_arguments(name, device))


@pytest.mark.parametrize("found", SMALL, ids=lambda x: f"{x.op}-{x.name}")
def test_the_same_bits_for_any_number_of_threads(place, found):
    threads, results = torch.get_num_threads(), []
    # Matrix products are the library's; what is ours in a linear op is tested by the others.
    counts = (1, 2, 3) if place == ("native", "cpu") and "linear" not in found.op else (1,)
    try:
        for count in (*counts, 1):
            torch.set_num_threads(count)
            results.append(evaluate(public(found.op), on(place[1], found.make(torch.float32)), found.gradients))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], x) for name, x in results[0].items())


def large_losses():
    return [case for case in CASES if case.op in ("ppo.ppo_loss", "advantages.masked_whiten") and case.large]


@pytest.mark.parametrize("found", large_losses(), ids=lambda x: x.op)
def test_sums_over_many_tokens_have_the_same_bits_for_any_number_of_threads(place, found):
    threads, arguments = torch.get_num_threads(), on(place[1], found.make(torch.float32))
    results = []
    try:
        for count in (1, 2, 3, 2) if place == ("native", "cpu") else (1, 1):
            torch.set_num_threads(count)
            results.append(evaluate(public(found.op), arguments, found.gradients))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], x) for name, x in results[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=place_id)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3)], ids=["rows", "groups of rows"])
def test_offsets_beyond_two_to_the_31(place, dtype, shape):
    # On the CPU pages that are not touched cost nothing.
    if place[1] == "cuda" and torch.cuda.mem_get_info()[0] < 2**34:
        pytest.skip("the GPU has less than 16 GiB of free memory")
    num_classes, stride, device = 301, 2**31 + 64, place[1]
    base = torch.empty(stride + 4 * num_classes, dtype=dtype, device=device)
    logits = base.as_strided((*shape, num_classes), (stride, num_classes + 1, 1))
    logits.copy_(torch.randn(*shape, num_classes, generator=torch.Generator().manual_seed(0)))
    tokens = torch.arange(math.prod(shape), device=device).view(shape)
    # The same numbers near each other, every row at the same distance from a 16-byte boundary.
    near = torch.empty(2048, dtype=dtype, device=device).as_strided(logits.shape, (1024, num_classes + 1, 1))
    dense = near.copy_(logits).requires_grad_()
    expected = logprobs.token_logprobs(dense, tokens)
    expected.sum().backward()
    source = logits.requires_grad_()
    assert torch.equal(logprobs.token_logprobs(source, tokens), expected)
    (gradient,) = torch.autograd.grad(logprobs.token_logprobs(source, tokens).sum(), source)
    assert torch.equal(gradient, dense.grad)
    uniforms = torch.tensor([0.3, 0.6], device=device)
    sampled = ops.sampling.sample_tokens(logits.detach()[:, -1], uniforms)
    assert torch.equal(sampled, ops.sampling.sample_tokens(dense.detach()[:, -1], uniforms))


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_the_gradient_of_logits_larger_than_the_caches(place, offset):
    """Large gradients are written around the cache; a row more or less at the front puts the rest elsewhere."""
    if place != ("native", "cpu"):
        pytest.skip("this is a question to the kernels of the CPU")
    num_rows, num_classes = 24, 100_003
    logits = leaf(num_rows, num_classes + offset, device=place[1])
    tokens = torch.arange(num_rows, device=place[1])
    mask = (torch.arange(num_rows) % 7 != 3).to(place[1])
    whole = torch.autograd.grad(logprobs.token_logprobs(logits, tokens, mask=mask).sum(), logits)[0]
    for row in range(num_rows):
        alone = logits.detach()[row : row + 1].clone().requires_grad_()
        logprobs.token_logprobs(alone, tokens[row : row + 1], mask=mask[row : row + 1]).sum().backward()
        assert torch.equal(whole[row], alone.grad[0])


def leaf(*shape, device="cpu", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()


def test_a_shifted_slice_of_logits_is_read_where_it_is(place):
    logits = leaf(3, 9, 41, device=place[1])
    tokens = torch.randint(0, 41, (3, 9), device=place[1])
    found = logprobs.token_logprobs(logits[:, :-1], tokens[:, 1:]).cpu().flatten()
    logits, tokens = logits.detach().cpu()[:, :-1].flatten(0, 1), tokens.cpu()[:, 1:].flatten()
    yardstick, truth = (definitions.token_logprobs(x, tokens) for x in (logits, logits.double()))
    assert_no_less_accurate(found, yardstick, truth)


def differentiable_calls(device):
    tokens, mask = torch.randint(0, 11, (6,), device=device), torch.ones(6, dtype=torch.bool, device=device)
    vector = torch.zeros(6, device=device)
    preferred = torch.ones(2, 3, 3, dtype=torch.bool, device=device)
    hidden, weight = leaf(6, 4, device=device), leaf(11, 4, device=device, seed=1)
    return {
        "ranking": lambda x: ops.ranking.pairwise_ranking_loss(x.view(2, 3), preferred).loss_sum.sum(),
        "logprobs": lambda x: logprobs.token_logprobs(x.unsqueeze(1) * weight[:, 0].detach(), tokens).sum(),
        "linear": lambda x: logprobs.linear_token_logprobs(hidden * x.unsqueeze(1), weight, tokens).sum(),
        "ppo": lambda x: ppo.ppo_loss(x, vector, vector + 1, x, vector, vector + 1, mask).loss,
    }


@pytest.mark.parametrize("name", ["ranking", "logprobs", "linear", "ppo"])
def test_a_graph_can_be_used_twice_and_a_second_derivative_is_refused(place, name):
    x = leaf(6, device=place[1])
    total = differentiable_calls(place[1])[name](x)
    first = torch.autograd.grad(total, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(total, x, retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match="found create_graph=True, accepted is a first backward"):
        torch.autograd.grad(total, x, create_graph=True)


def test_a_loss_may_be_changed_in_place(place):
    x, vector = leaf(6, device=place[1]), torch.zeros(6, device=place[1])
    mask = torch.ones(6, dtype=torch.bool, device=place[1])
    loss = ppo.clipped_policy_loss(x, vector, vector + 1, mask).loss
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    loss *= 0.5
    assert torch.equal(torch.autograd.grad(loss, x)[0], 0.5 * expected)


def test_only_wanted_gradients_are_made(place):
    arguments = on(place[1], case("ppo.linear_ppo_loss", "bias and temperature").make(torch.float32))
    whole = evaluate(ppo.linear_ppo_loss, arguments, ("hidden", "weight", "bias", "values"))
    for name in ("hidden", "weight", "bias", "values"):
        alone = evaluate(ppo.linear_ppo_loss, arguments, (name,))
        torch.testing.assert_close(alone[f"gradient of {name}"], whole[f"gradient of {name}"])


def test_mixed_dtypes_are_computed_in_the_wider_one(place):
    arguments = on(place[1], case("ppo.ppo_loss", "(4, 5)").make(torch.bfloat16))
    arguments["values"] = arguments["values"].float()
    wide = {k: x.float() if x.is_floating_point() else x for k, x in arguments.items()}
    found = evaluate(ppo.ppo_loss, arguments, ("logprobs", "values"))
    expected = evaluate(ppo.ppo_loss, wide, ("logprobs", "values"))
    assert torch.equal(found["output.0"], expected["output.0"])
    assert found["gradient of logprobs"].dtype == torch.bfloat16
    assert torch.equal(found["gradient of values"], expected["gradient of values"])


def test_advantages_do_not_depend_on_how_rows_are_packed(place):
    g = torch.Generator().manual_seed(0)
    lengths = [3, 0, 700, 1, 1025]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rewards, values = (torch.randn(int(offsets[-1]), generator=g) for _ in range(2))
    mask = torch.rand(int(offsets[-1]), generator=g) < 0.7
    packed = advantages.generalized_advantages(
        *(x.to(place[1]) for x in (rewards, values, mask)), lam=0.9, cu_seqlens=offsets.to(place[1])
    )
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        rows = [x[start:end].unsqueeze(0) for x in (rewards, values)]
        counted = mask[start:end].unsqueeze(0)
        yardstick = definitions.generalized_advantages(*rows, counted, lam=0.9)
        truth = definitions.generalized_advantages(*(x.double() for x in rows), counted, lam=0.9)
        for found, near, expected in zip(packed, yardstick, truth, strict=True):
            assert_no_less_accurate(found[start:end].cpu(), near[0], expected[0])


def test_a_group_that_is_none_gives_nan_there_alone(place):
    """As on a GPU, where ids are checked by nobody."""
    backend, device = place
    scores = torch.tensor([1.0, 10.0, 4.0, 2.0, 20.0, 5.0], device=device)
    groups = torch.tensor([0, 1, 0, -1, 1, 2**40], device=device)
    found = private_ops.get(PREFIXES[backend], "group_advantages")(scores, groups, 3, 0, False, 1, 1e-4)
    assert found.tolist()[:3] == pytest.approx([-1.5, -5.0, 1.5])
    assert found.isnan().tolist() == [False, False, False, True, False, True]
    mask = torch.tensor([[True, False]], device=device).expand(6, 2)
    x = scores.unsqueeze(1).repeat(1, 2)
    whitened = private_ops.get(PREFIXES[backend], "group_whiten")(x, mask, groups, 3, True, 1, 1e-8, 0)
    assert whitened[:, 0].isnan().tolist() == found.isnan().tolist()
    assert whitened[:, 1].tolist() == [0.0] * 6


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_linear_ops_hold_no_more_logits_than_the_workspace(place, num_chunks):
    backend, device = place
    names = ("token_logprobs", "token_logprobs_backward_", "ppo_loss", "general_ppo_loss")
    row = linear_chunks.RowKernels(*(private_ops.get(PREFIXES[backend], name) for name in names))
    num_rows, num_classes = 60, 5000
    workspace = 4 * linear_chunks._padded(num_classes) * num_rows // num_chunks
    sizes, logits = [], []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for x in output if isinstance(output, tuple | list) else [output]:
                if isinstance(x, torch.Tensor):
                    sizes.append(x.untyped_storage().nbytes())
            if function is torch.ops.aten.mm.out and output.shape == (num_rows // num_chunks, num_classes):
                logits.append(output)
            return output

    hidden, weight = torch.randn(num_rows, 4, device=device), torch.randn(num_classes, 4, device=device)
    tokens, vector = torch.randint(0, num_classes, (num_rows,), device=device), torch.zeros(num_rows, device=device)
    mask, wanted = torch.ones(num_rows, dtype=torch.bool, device=device), [True, True, False]
    with Watch(), torch.no_grad():
        logprob, _, normalizers, kept = linear_chunks.forward(
            row, hidden, weight, None, tokens, mask, 1.0, 0.0, workspace, False, True
        )
        linear_chunks.backward(
            row, hidden, weight, None, tokens, mask, normalizers, None, kept, logprob, None, 1.0, 0.0, workspace, wanted
        )
        assert len(logits) == 2 * num_chunks - 1, "the logits of the last chunk are not computed again"
        linear_chunks.ppo_loss(
            row,
            hidden,
            weight,
            None,
            tokens,
            *[vector] * 5,
            mask,
            *[None] * 4,
            flat(vf_coef=0.1),
            True,
            1.0,
            0.0,
            workspace,
            wanted,
        )
    assert max(sizes) == workspace


def test_a_masked_token_is_dropped_before_the_matrix_product(place):
    if place[1] != "cpu":
        pytest.skip("an accelerator would have to be waited for")
    mask = torch.tensor([True, False, True, False])
    rows = linear_chunks._rows(torch.full((4, 3), math.nan).index_fill(0, torch.tensor([0, 2]), 1.0), mask)
    assert rows.hidden.shape == (2, 3)
    assert not rows.hidden.isnan().any()
