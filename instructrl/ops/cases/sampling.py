"""Cases of `instructrl.ops.sampling`."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, random_mask, seeded
from instructrl.ops.cases.logprobs import logits


def _sampling(dtype: torch.dtype, num_rows: int, num_classes: int, kind: str = "") -> Arguments:
    arguments = logits(dtype, num_rows, num_classes, kind)
    generator = seeded(f"uniforms{num_rows}{num_classes}")
    if kind == "allowed in each row":
        tokens = arguments["tokens"].unsqueeze(1)
        arguments["allowed"] = random_mask((num_rows, num_classes), generator, 0.4).scatter_(1, tokens, True)
    del arguments["tokens"]
    return arguments | {"uniforms": torch.rand((num_rows,), generator=generator)}


def cases() -> list[Case]:
    sizes = [(1, 1), (9, 2), (33, 257), (0, 7), (3, 50257)]
    makes = {f"{b}x{v}": partial(_sampling, num_rows=b, num_classes=v) for b, v in sizes}
    kinds = ["temperature", "logits of 1e4", "one finite", "some -inf", "misaligned"]
    kinds += ["allowed in each row", "capped, allowed and some -inf"]
    makes |= {kind: partial(_sampling, num_rows=33, num_classes=33, kind=kind) for kind in kinds}
    makes["capped"] = partial(_sampling, num_rows=3, num_classes=2100, kind="capped")
    cases = [Case(op="sampling.sample_tokens", name=name, make=make) for name, make in makes.items()]
    large = partial(_sampling, num_rows=64, num_classes=50257)
    return [*cases, Case(op="sampling.sample_tokens", name="64x50257", make=large, large=True)]
