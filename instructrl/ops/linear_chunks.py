"""The language-model head of a compiled backend, in chunks of tokens: matrix products of the library, row kernels of
the backend.

The logits of a chunk fill a workspace, whose rows are padded to a multiple of 64 elements: with V = 50257 both the
matrix product and 16-byte loads want aligned rows. The row kernel reads them, and in the backward writes their
gradient over them, which goes into the next two matrix products.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from instructrl.ops import checks, class_rows, linear
from instructrl.ops.class_rows import RowKernels
from instructrl.ops.large_pages import expect_large_pages
from instructrl.ops.ppo_settings import Flat
from instructrl.ops.ppo_terms import PPO_METRICS, weighted
from instructrl.ops.precision import widest

_ROW_ALIGNMENT = 64
_RATIO_MAX = PPO_METRICS.index("ratio_max")


class _Head(NamedTuple):
    """The language-model head as its matrix products take it.

    weight: [V, D], in the dtype of the products. bias: [V] in the dtype of the logits, or None.
    dtype: of the logits and of sums, float32 or float64. Half precision goes into the products as it is where the
    device can add up in float32 (`torch.mm(out_dtype=...)`), else as float32.
    """

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    @property
    def padded_classes(self) -> int:
        return _padded(self.weight.shape[0])

    def logits(self, hidden: Tensor, workspace: Tensor) -> Tensor:
        """hidden: [n, D] -> [n, V], a view of workspace [>= n, padded V]."""
        logits = workspace[: hidden.shape[0], : self.weight.shape[0]]
        _product(hidden, self.weight.t(), self.dtype, logits)
        return logits if self.bias is None else logits.add_(self.bias)


def _padded(num_classes: int) -> int:
    return -(-num_classes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


def _product(left: Tensor, right: Tensor, dtype: torch.dtype, out: Tensor) -> Tensor:
    if left.dtype == dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=dtype, out=out)


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Head:
    mixed_products = hidden.device.type == "cuda" and hidden.dtype == weight.dtype and dtype == torch.float32
    factors = weight.dtype if mixed_products else dtype
    return _Head(weight.to(factors), None if bias is None else bias.to(dtype), dtype)


class _Rows(NamedTuple):
    """The rows that are computed: all of them, or on the CPU the counted ones, whose places are `counted`.

    On an accelerator the number of counted rows is not known without waiting for it, so there hidden states that do
    not count are replaced by zeros and their rows are skipped by the row kernels.
    """

    hidden: Tensor
    mask: Tensor | None
    counted: Tensor | None

    def pick(self, x: Tensor) -> Tensor:
        """[N, ...] -> the computed rows."""
        return x if self.counted is None else x.index_select(0, self.counted)

    def put(self, x: Tensor, num_rows: int) -> Tensor:
        """The computed rows -> [N, ...], zero elsewhere."""
        if self.counted is None:
            return x
        return x.new_zeros((num_rows, *x.shape[1:])).index_copy_(0, self.counted, x)


def _rows(hidden: Tensor, mask: Tensor | None) -> _Rows:
    """hidden: [N, D], mask: [N] or None."""
    if mask is None:
        return _Rows(hidden, None, None)
    if hidden.device.type == "cpu":
        counted = mask.nonzero().squeeze(1)
        return _Rows(hidden.index_select(0, counted), None, counted)
    return _Rows(torch.where(mask.unsqueeze(1), hidden, 0.0), mask, None)


def _flat(x: Tensor | None, *shape: int) -> Tensor | None:
    return None if x is None else x.reshape(-1, *shape)


def _at(rows: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x[rows] for x in tensors]


def _chunks(num_rows: int, row_bytes: int, workspace: int) -> Iterator[slice]:
    """Slices of at most as many rows as fit, as even as can be; none where there are no rows."""
    most = max(1, workspace // row_bytes)
    number = -(-num_rows // most)
    for i in range(number):
        yield slice(num_rows * i // number, num_rows * (i + 1) // number)


def _workspace(head: _Head, num_rows: int, workspace: int) -> Tensor:
    shape = workspace_shape(num_rows, head.weight.shape[0], head.dtype, workspace)
    return expect_large_pages(head.weight.new_empty(shape, dtype=head.dtype))


def workspace_shape(num_rows: int, num_classes: int, dtype: torch.dtype, workspace: int) -> tuple[int, int]:
    padded = _padded(num_classes)
    return min(num_rows, max(1, workspace // (padded * dtype.itemsize))), padded


def stored_dtype(x: Tensor) -> torch.dtype:
    """Of a gradient that is still to be scaled: float16 would lose what a loss scale is there to save."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


class _Gradients:
    """Gradients of hidden, weight and bias, chunk by chunk; those that are not wanted are None."""

    def __init__(self, head: _Head, hidden: Tensor, wanted: list[bool]) -> None:
        self.head = head
        self.hidden = hidden.new_empty(hidden.shape, dtype=head.dtype) if wanted[0] else None
        self.bias = head.weight.new_zeros(head.weight.shape[0], dtype=head.dtype) if wanted[2] else None
        self.weight: Tensor | None = None
        self._wants_weight = wanted[1]

    def add(self, rows: slice, hidden: Tensor, gradient: Tensor) -> None:
        """hidden: [n, D], of this chunk. gradient: [n, V], of its logits."""
        if self.bias is not None:
            self.bias.add_(gradient.sum(0))
        gradient = gradient.to(self.head.weight.dtype)
        if self.hidden is not None:
            _product(gradient, self.head.weight, self.head.dtype, self.hidden[rows])
        if self._wants_weight:
            self._add_weight(gradient.t(), hidden)

    def _add_weight(self, transposed: Tensor, hidden: Tensor) -> None:
        dtype = self.head.dtype
        if self.weight is None:
            # The first chunk writes, which saves filling [V, D] with zeros and reading it back.
            self.weight = expect_large_pages(hidden.new_empty(self.head.weight.shape, dtype=dtype))
            _product(transposed, hidden, dtype, self.weight)
        elif hidden.dtype == dtype:
            self.weight.addmm_(transposed, hidden)
        else:
            torch.addmm(self.weight, transposed, hidden, out_dtype=dtype, out=self.weight)

    def results(self, rows: _Rows, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """In the shapes of the inputs and `stored_dtype` of theirs; [0] where not wanted."""
        nothing = hidden.new_empty(0)
        by_weight = self.weight
        if by_weight is None and self._wants_weight:
            by_weight = torch.zeros_like(weight, dtype=self.head.dtype)
        by_hidden = nothing
        if self.hidden is not None:
            by_hidden = rows.put(self.hidden.to(stored_dtype(hidden)), math.prod(hidden.shape[:-1])).view(hidden.shape)
        return [
            by_hidden,
            nothing if by_weight is None else by_weight.to(stored_dtype(weight)),
            nothing if self.bias is None or bias is None else self.bias.to(stored_dtype(bias)),
        ]


def forward(
    row: RowKernels,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    with_entropy: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    dtype = checks.accumulation_dtype(hidden, weight)
    num_rows, each = math.prod(hidden.shape[:-1]), tokens.shape[hidden.dim() - 1 :]
    row = class_rows.of_candidates(row) if each else row
    with linear.full_precision(hidden.device):
        head = _head(hidden, weight, bias, dtype)
        rows = _rows(hidden.reshape(-1, hidden.shape[-1]), _flat(mask))
        picked, chunk_tokens = rows.hidden.to(head.weight.dtype), rows.pick(tokens.reshape(-1, *each))
        num_computed = picked.shape[0]
        # What is kept is as long as if all rows counted, which torch.compile can tell without the mask.
        space = _workspace(head, num_rows if keep else num_computed, workspace)
        logprobs = hidden.new_empty((num_computed, *each), dtype=dtype)
        entropy = hidden.new_empty(num_computed, dtype=dtype)
        normalizers = hidden.new_empty((num_computed, 2), dtype=dtype)
        for part in _chunks(num_computed, space.shape[1] * dtype.itemsize, space.nbytes):
            logits = head.logits(picked[part], space)
            selected = (chunk_tokens[part], *_at(part, rows.mask), None)
            found = row.forward(logits, *selected, temperature, tanh_slope, with_entropy)
            logprobs[part], normalizers[part] = found[0], found[2]
            if with_entropy:
                entropy[part] = found[1]
    return (
        rows.put(logprobs, num_rows).view(tokens.shape),
        rows.put(entropy, num_rows).view(hidden.shape[:-1]) if with_entropy else hidden.new_empty(0, dtype=dtype),
        normalizers if rows.counted is None else rows.put(normalizers, num_rows),
        space if keep else hidden.new_empty((0, 0), dtype=dtype),
    )


def backward(
    row: RowKernels,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    normalizers: Tensor,
    entropy: Tensor | None,
    kept: Tensor | None,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    dtype, each = checks.accumulation_dtype(hidden, weight), tokens.shape[hidden.dim() - 1 :]
    row = class_rows.of_candidates(row) if each else row
    with linear.full_precision(hidden.device):
        head = _head(hidden, weight, bias, dtype)
        rows = _rows(hidden.reshape(-1, hidden.shape[-1]), _flat(mask))
        picked = rows.hidden.to(head.weight.dtype)
        flat = (_flat(tokens, *each), normalizers, _flat(entropy), _flat(grad_logprobs, *each), _flat(grad_entropy))
        per_row = [None if x is None else rows.pick(x) for x in flat]
        total = _Gradients(head, picked, wanted)
        space = _workspace(head, picked.shape[0], workspace) if kept is None else kept
        parts = list(_chunks(picked.shape[0], head.padded_classes * dtype.itemsize, space.nbytes))
        # The last chunk first, whose logits the forward may have left in the workspace.
        for part in reversed(parts):
            chunk_tokens, *others = _at(part, *per_row)
            arguments = (chunk_tokens, *_at(part, rows.mask), None, *others, temperature, tanh_slope)
            if kept is None or part is not parts[-1]:
                logits = head.logits(picked[part], space)
            else:
                logits = space[: picked[part].shape[0], : weight.shape[0]]
            row.backward_inplace(logits, *arguments)
            total.add(part, picked[part], logits)
    return tuple(total.results(rows, hidden, weight, bias))


def nll_loss(
    row: RowKernels,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor,
    weights: Tensor | None,
    num_tokens: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    dtype, flat_mask = checks.accumulation_dtype(hidden, weight), mask.reshape(-1)
    count = flat_mask.sum(dtype=widest(mask.device)) if num_tokens is None else num_tokens
    with linear.full_precision(hidden.device):
        head = _head(hidden, weight, bias, dtype)
        rows = _rows(hidden.reshape(-1, hidden.shape[-1]), flat_mask)
        picked, chunk_tokens = rows.hidden.to(head.weight.dtype), rows.pick(tokens.reshape(-1))
        total, space = _Gradients(head, picked, wanted), _workspace(head, picked.shape[0], workspace)
        by_logprob = hidden.new_full((picked.shape[0],), -1.0, dtype=dtype)
        if weights is not None:
            by_logprob = rows.pick(-torch.where(mask, weights, 0.0).reshape(-1).to(dtype))
        loss_sum = hidden.new_zeros((), dtype=widest(hidden.device))
        for part in _chunks(picked.shape[0], head.padded_classes * dtype.itemsize, space.nbytes):
            logits = head.logits(picked[part], space)
            selected = (chunk_tokens[part], *_at(part, rows.mask), None)
            logprobs, _, normalizers = row.forward(logits, *selected, temperature, tanh_slope, False)
            losses = -logprobs if weights is None else weighted(logprobs, by_logprob[part])
            loss_sum += losses.sum(dtype=loss_sum.dtype)
            if any(wanted):
                upstream = (normalizers, None, by_logprob[part], None)
                row.backward_inplace(logits, *selected, *upstream, temperature, tanh_slope)
                total.add(part, picked[part], logits)
    scale = 1.0 / torch.where(count > 0, count, 1.0)
    losses = torch.stack([loss_sum * scale, scale]).to(dtype)
    return losses, *total.results(rows, hidden, weight, bias), hidden.new_empty(0)


def ppo_loss(
    row: RowKernels,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    values: Tensor | None,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    ref_logprobs: Tensor | None,
    log_ratios: Tensor | None,
    weights: Tensor | None,
    num_tokens: Tensor | None,
    settings: list[float],
    plain: bool,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    model = (hidden, weight, old_logprobs, advantages, values, old_values, returns)
    dtype = checks.accumulation_dtype(*(x for x in model if x is not None))
    flat_mask = mask.reshape(-1)
    count = flat_mask.sum(dtype=widest(mask.device)) if num_tokens is None else num_tokens
    with linear.full_precision(hidden.device):
        head = _head(hidden, weight, bias, dtype)
        rows = _rows(hidden.reshape(-1, hidden.shape[-1]), flat_mask)
        picked, chunk_tokens = rows.hidden.to(head.weight.dtype), rows.pick(tokens.reshape(-1))
        inputs = (old_logprobs, log_ratios, advantages, values, old_values, returns, ref_logprobs, weights)
        per_row = [None if x is None else rows.pick(x.reshape(-1)).to(dtype) for x in inputs]
        counts = rows.pick(flat_mask)
        total, space = _Gradients(head, picked, wanted), _workspace(head, picked.shape[0], workspace)
        by_value, losses, metrics = [], [], []
        # At least one chunk, which may be empty: the loss of nothing has its denominator too.
        parts = [*_chunks(picked.shape[0], head.padded_classes * dtype.itemsize, space.nbytes)] or [slice(0, 0)]
        for part in parts:
            logits = head.logits(picked[part], space)
            selected = (chunk_tokens[part], *_at(part, rows.mask), None)
            logprobs, _, normalizers = row.forward(logits, *selected, temperature, tanh_slope, False)
            found = _objective(row, logprobs, _at(part, *per_row), counts[part], count, settings, plain)
            losses.append(found[0])
            by_value.append(found[2])
            metrics.append(found[3])
            if any(wanted[:3]):
                upstream = (normalizers, None, found[1], None)
                row.backward_inplace(logits, *selected, *upstream, temperature, tanh_slope)
                total.add(part, picked[part], logits)
    gradients = total.results(rows, hidden, weight, bias)
    grad_values = hidden.new_empty(0, dtype=dtype)
    if values is not None:
        grad_values = rows.put(torch.cat(by_value), flat_mask.shape[0]).view(values.shape)
    found = torch.stack(losses)
    # The last is 1 / denominator, the same in every chunk.
    return torch.cat([found[:, :3].sum(0), found[0, 3:]]), *gradients, grad_values, _joined(torch.stack(metrics))


def _objective(
    row: RowKernels,
    logprobs: Tensor,
    per_row: list[Tensor | None],
    counts: Tensor,
    count: Tensor,
    settings: list[float],
    plain: bool,
) -> tuple[Tensor, ...]:
    """Losses, gradients of log-probabilities and values, and metrics of a chunk."""
    old, log_ratios, advantages, values, old_values, returns, ref, weights = per_row
    critic = (values, old_values, returns)
    if not plain:
        inputs = (logprobs, old, log_ratios, advantages, *critic, counts, ref, weights)
        return row.general_ppo_loss(*inputs, count, settings, False)
    numbers = Flat(*settings)
    clip = (numbers.clip_low, numbers.clip_high, numbers.cliprange_value)
    return row.ppo_loss(logprobs, old, advantages, *critic, counts, ref, count, *clip, numbers.vf_coef, numbers.kl_coef)


def _joined(metrics: Tensor) -> Tensor:
    """[chunks, M] -> [M]: sums, and the largest of the maxima."""
    total = metrics.sum(0)
    total[_RATIO_MAX] = metrics[:, _RATIO_MAX].amax()
    return total
