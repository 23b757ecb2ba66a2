"""The yardstick of numerical tests."""

import torch


def assert_no_less_accurate(actual, yardstick, truth, *, name="", neighbours=()):
    """As close to the truth as a plain float32 computation of the same definition is.

    `max|actual - truth| <= 2 * max|yardstick - truth| + eps32 * max|truth|`, with one rounding of the dtype of
    `actual` on top where that is lower, and in the proportion of the epsilons where it is float64.

    truth: float64, on the inputs as given. yardstick: float32, on the same inputs. Infinite elements must be equal.
    neighbours: an iterable of further (yardstick, truth), on inputs nearby. The error of one short sum may be zero by
        luck; where the bound is missed the largest error of the yardstick over these counts instead.
    """
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert not actual.is_floating_point() or not actual.isnan().any(), f"{name}: NaN"
    infinite = truth.isinf()
    assert torch.equal(actual[infinite].double(), truth[infinite].double()), f"{name}: infinite elements differ"
    error, bound = _largest_error(actual, truth), _bound(actual.dtype, _largest_error(yardstick, truth), truth)
    if error > bound:
        worst = max((_largest_error(*pair) for pair in neighbours), default=0.0)
        bound = max(bound, _bound(actual.dtype, worst, truth))
    assert error <= bound, f"{name}: error {error:.3e} above {bound:.3e} (largest value {_largest(truth):.3e})"


def _largest(x):
    finite = x.detach().double()
    finite = finite[finite.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def _largest_error(x, truth):
    x, truth = x.detach().double(), truth.detach().double()
    return _largest(torch.where(truth.isinf(), 0.0, x - truth))


def _bound(dtype, yardstick_error, truth):
    eps32, largest = torch.finfo(torch.float32).eps, _largest(truth)
    bound = 2 * yardstick_error + eps32 * largest
    if dtype == torch.float64:
        return bound * torch.finfo(torch.float64).eps / eps32
    if dtype in (torch.float16, torch.bfloat16):
        information = torch.finfo(dtype)
        return bound + max(information.eps * largest, information.smallest_normal * information.eps)
    return bound
