"""Cases of `instructrl.ops.statistics`."""

from functools import partial

from instructrl.ops.cases.case import Case
from instructrl.ops.cases.logprobs import linear, logits


def cases() -> list[Case]:
    kinds = ("temperature", "nearly certain", "masked", "misaligned", "scaled", "capped and allowed", "some -inf")
    makes = {kind: partial(logits, num_rows=7, num_classes=33, kind=kind) for kind in kinds}
    # More classes than a block of the native kernels, or a tile of Triton's, has.
    makes["capped"] = partial(logits, num_rows=3, num_classes=2100, kind="capped")
    found = [
        Case(op="statistics.token_statistics", name=name, make=make, gradients=("logits",))
        for name, make in makes.items()
    ]
    for kind, gradients in (
        ("masked", ("hidden", "weight")),
        ("capped, an id excluded", ("hidden", "weight", "bias")),
    ):
        make = partial(linear, num_rows=13, num_hidden=8, num_classes=33, kind=kind, num_chunks=3)
        found.append(Case(op="statistics.linear_token_statistics", name=kind, make=make, gradients=gradients))
    return found
