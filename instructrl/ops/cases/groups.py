"""Cases of `instructrl.ops.groups`."""

from functools import partial

import torch

from instructrl.ops.advantage_settings import GroupSettings
from instructrl.ops.cases.case import Arguments, Case, seeded


def _scores(dtype: torch.dtype, num_scores: int, num_groups: int, settings: GroupSettings | None = None) -> Arguments:
    generator = seeded(f"groups{num_scores}{num_groups}")
    scores = 3.0 + torch.randn(num_scores, generator=generator, dtype=torch.float64)
    arguments: Arguments = {} if settings is None else {"settings": settings}
    groups = torch.randint(0, num_groups, (num_scores,), generator=generator)
    return {"scores": scores.to(dtype), "groups": groups, "num_groups": num_groups} | arguments


def cases() -> list[Case]:
    # Some groups of the second have one score, some none; the third takes a kernel's threads two turns.
    makes = {f"{n} of {g}": partial(_scores, num_scores=n, num_groups=g) for n, g in [(9, 2), (7, 6), (300, 3), (0, 1)]}
    chosen = {
        "RLOO": GroupSettings(baseline="leave_one_out", scale="none"),
        "Dr. GRPO": GroupSettings(scale="none"),
        "scaled alone": GroupSettings(baseline="none", ddof=0, epsilon=0.1),
    }
    makes |= {name: partial(_scores, num_scores=7, num_groups=6, settings=x) for name, x in chosen.items()}
    cases = [Case(op="groups.group_advantages", name=name, make=make) for name, make in makes.items()]
    large = partial(_scores, num_scores=4096, num_groups=512)
    return [*cases, Case(op="groups.group_advantages", name="4096 of 512", make=large, large=True)]
