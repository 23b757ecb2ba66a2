"""Cases of `instructrl.ops.candidates`."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, seeded
from instructrl.ops.cases.logprobs import linear, logits


def _with_ids(dtype: torch.dtype, num_rows: int, num_classes: int, num_ids: int, kind: str = "") -> Arguments:
    """Ids around the token of each row, which repeat where there are more of them than classes."""
    arguments = logits(dtype, num_rows, num_classes, kind)
    tokens = arguments.pop("tokens").unsqueeze(1)
    arguments["ids"] = (tokens + torch.arange(num_ids) * (num_classes // 3 + 1)) % num_classes
    allowed = arguments.get("allowed")
    if allowed is not None:
        arguments["ids"] = torch.where(allowed[arguments["ids"]], arguments["ids"], tokens)
    return arguments


def _linear_with_ids(dtype: torch.dtype, num_ids: int, kind: str) -> Arguments:
    arguments = linear(dtype, num_rows=13, num_hidden=8, num_classes=33, kind=kind, num_chunks=3)
    arguments.pop("tokens")
    generator = seeded(f"ids{kind}")
    arguments["ids"] = torch.randint(0, 32, (13, num_ids), generator=generator)
    return arguments


def cases() -> list[Case]:
    make = partial(_with_ids, num_rows=7, num_classes=33, num_ids=4)
    makes = {kind: partial(make, kind=kind) for kind in ("temperature", "nearly certain", "masked", "misaligned")}
    makes["5x257x1"] = partial(_with_ids, num_rows=5, num_classes=257, num_ids=1)
    makes["ids that repeat"] = partial(_with_ids, num_rows=3, num_classes=2, num_ids=5)
    makes["capped and allowed"] = partial(make, kind="capped and allowed")
    found = [
        Case(op="candidates.candidate_logprobs", name=name, make=make, gradients=("logits",))
        for name, make in makes.items()
    ]
    for kind, gradients in (
        ("masked", ("hidden", "weight")),
        ("capped, an id excluded", ("hidden", "weight", "bias")),
    ):
        made = partial(_linear_with_ids, num_ids=3, kind=kind)
        found.append(Case(op="candidates.linear_candidate_logprobs", name=kind, make=made, gradients=gradients))
    return found
