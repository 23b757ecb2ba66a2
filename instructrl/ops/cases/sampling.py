"""Cases of `instructrl.ops.sampling`."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, seeded
from instructrl.ops.cases.logprobs import logits


def _sampling(dtype: torch.dtype, num_rows: int, num_classes: int, kind: str = "") -> Arguments:
    arguments = logits(dtype, num_rows, num_classes, kind)
    del arguments["tokens"]
    generator = seeded(f"uniforms{num_rows}{num_classes}")
    return arguments | {"uniforms": torch.rand((num_rows,), generator=generator)}


def cases() -> list[Case]:
    sizes = [(1, 1), (9, 2), (33, 257), (0, 7), (3, 50257)]
    makes = {f"{b}x{v}": partial(_sampling, num_rows=b, num_classes=v) for b, v in sizes}
    kinds = ["temperature", "logits of 1e4", "one finite", "some -inf", "misaligned"]
    makes |= {kind: partial(_sampling, num_rows=33, num_classes=33, kind=kind) for kind in kinds}
    cases = [Case(op="sampling.sample_tokens", name=name, make=make) for name, make in makes.items()]
    large = partial(_sampling, num_rows=64, num_classes=50257)
    return [*cases, Case(op="sampling.sample_tokens", name="64x50257", make=large, large=True)]
