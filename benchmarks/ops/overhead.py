"""What a call costs beside its work: microseconds on inputs so small that nothing else is left.

    OMP_NUM_THREADS=1 python -m benchmarks.ops.overhead [--backend native]

Three figures an op: the registered private op, the public function without a gradient, and forward and backward.
Medians of rounds that take turns. The last line is a multiplication by PyTorch itself, for the cost of autograd.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from instructrl import kernels, ops
from instructrl.ops import advantages, logprobs, ppo, private_ops, ranking, sampling

_ROUNDS, _CALLS = 15, 400


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


def calls(prefix: str) -> dict[str, tuple[Callable[[], object], Callable[[], object], Callable[[], object] | None]]:
    """By op: registered, public, forward and backward."""
    x, y, mask = torch.randn(4), torch.randn(2, 4), torch.ones(4, dtype=torch.bool)
    mask2, preferred = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3, 3, dtype=torch.bool)
    tokens, uniforms, scores = torch.tensor([1, 2]), torch.rand(2), torch.randn(2, 3)
    logits, a, b, s = leaf(2, 4), leaf(4), leaf(4), leaf(2, 3)

    def get(name: str) -> Callable[..., object]:
        return private_ops.get(prefix, name)

    def backward(loss: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), leaves)

    one = torch.ones(2)
    return {
        "pairwise_ranking_loss": (
            partial(get("pairwise_ranking_loss"), scores, preferred),
            lambda: ranking.pairwise_ranking_loss(scores, preferred),
            lambda: torch.autograd.grad(ranking.pairwise_ranking_loss(s, preferred).loss_sum, s, one),
        ),
        "token_logprobs": (
            partial(get("token_logprobs"), y, tokens, None, None, 1.0, 0.0, False),
            lambda: logprobs.token_logprobs(y, tokens),
            lambda: torch.autograd.grad(logprobs.token_logprobs(logits, tokens), logits, one),
        ),
        "clipped_policy_loss": (
            partial(get("clipped_policy_loss"), x, x, x, mask, None, 0.2),
            lambda: ppo.clipped_policy_loss(x, x, x, mask),
            backward(lambda: ppo.clipped_policy_loss(a, x, x, mask).loss, a),
        ),
        "ppo_loss": (
            partial(get("ppo_loss"), x, x, x, x, x, x, mask, None, None, 0.2, 0.2, 0.1, 0.0),
            lambda: ppo.ppo_loss(x, x, x, x, x, x, mask),
            backward(lambda: ppo.ppo_loss(a, x, x, b, x, x, mask).loss, a, b),
        ),
        "ppo_advantages": (
            partial(get("ppo_advantages"), y, y, y, y[:, 0], mask2, 0.02, 1.0, 0.95, None),
            lambda: advantages.ppo_advantages(y, y, y, y[:, 0], mask2, kl_coef=0.02),
            None,
        ),
        "masked_whiten": (
            partial(get("masked_whiten"), y, mask2, None),
            lambda: advantages.masked_whiten(y, mask2),
            None,
        ),
        "sample_tokens": (
            partial(get("sample_tokens"), y, uniforms, None, 1.0, 0.0),
            lambda: sampling.sample_tokens(y, uniforms),
            None,
        ),
        "torch.mul": (lambda: torch.mul(x, x), lambda: x * x, backward(lambda: (a * x).sum(), a)),
    }


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return 1e6 * (time.perf_counter() - start) / _CALLS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="native")
    backend = parser.parse_args().backend
    if kernels.why_missing(backend):
        parser.error(f"{backend}: {kernels.why_missing(backend)}")
    with ops.use_backend(backend):
        found = calls(f"_{backend}_")
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(_ROUNDS):
            for name, steps in found.items():
                for place, step in enumerate(steps):
                    if step is not None:
                        times.setdefault((name, place), []).append(microseconds(step))
    print(f"{'microseconds a call':<24}{'registered':>12}{'public':>12}{'fwd + bwd':>12}")
    for name in found:
        cells = [times.get((name, place)) for place in range(3)]
        print(f"{name:<24}" + "".join(f"{statistics.median(x):12.1f}" if x else " " * 12 for x in cells))


if __name__ == "__main__":
    main()
