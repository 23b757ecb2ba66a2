"""Cases of `instructrl.ops.vocab_shards`: of 40 ids, those from 7 to 39 are here."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded

_ROWS, _HIDDEN, _CLASSES = 21, 6, 33


def _rows(dtype: torch.dtype, kind: str) -> Arguments:
    generator = seeded(f"shard{kind}")
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    arguments: Arguments = {
        "logits": 3.0 * draw((_ROWS, _CLASSES)),
        "tokens": torch.randint(-7, _CLASSES, (_ROWS,), generator=generator),
        "temperature": 0.7,
    }
    if kind == "capped":
        arguments |= {"temperature": 0.05, "tanh_slope": 0.1}
    elif kind == "masked":
        mask = random_mask((_ROWS,), generator, 0.6)
        arguments |= {"mask": mask, "logits": poisoned(arguments["logits"], mask)}
    arguments["logits"] = arguments["logits"].to(dtype)
    return arguments


def _of_hidden(dtype: torch.dtype, arguments: Arguments) -> Arguments:
    """A head in place of the logits, in two chunks."""
    draw = partial(torch.randn, generator=seeded("shard of a head"), dtype=torch.float64)
    del arguments["logits"]
    head = {"hidden": draw((_ROWS, _HIDDEN)), "weight": draw((_CLASSES, _HIDDEN)), "bias": draw((_CLASSES,))}
    workspace = 16 * _CLASSES * (_ROWS // 2 + 1)
    return {name: x.to(dtype) for name, x in head.items()} | arguments | {"workspace": workspace}


def _with_upstream(dtype: torch.dtype, arguments: Arguments) -> Arguments:
    """What the merging and the loss give: normalizers of more than the shard, in the dtype that they come in."""
    draw = partial(torch.randn, generator=seeded("upstream"), dtype=torch.float64)
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    units = arguments["temperature"] if "tanh_slope" in arguments else 1.0
    normalizers = torch.stack([12.0 * units + draw((_ROWS,)).abs() * units, 2.0 + draw((_ROWS,)).abs()], -1)
    upstream = {"normalizers": normalizers, "entropy": 1.0 + draw((_ROWS,)).abs()}
    upstream |= {"grad_logprobs": draw((_ROWS,)), "grad_entropy": draw((_ROWS,))}
    return arguments | {name: x.to(accumulation) for name, x in upstream.items()}


def _make(dtype: torch.dtype, kind: str, from_hidden: bool, backward: bool) -> Arguments:
    arguments = _rows(dtype, kind)
    if from_hidden:
        arguments = _of_hidden(dtype, arguments)
    return _with_upstream(dtype, arguments) if backward else arguments


def cases() -> list[Case]:
    ops = {"shard_rows": (False, False), "shard_gradient": (False, True)}
    ops |= {"linear_shard_rows": (True, False), "linear_shard_gradients": (True, True)}
    return [
        Case(op=f"vocab_shards.{op}", name=kind, make=partial(_make, kind=kind, from_hidden=hidden, backward=backward))
        for op, (hidden, backward) in ops.items()
        for kind in ("plain", "capped", "masked")
    ]
