"""Cases of `instructrl.ops.ranking`."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, poisoned, seeded


def _ranking(
    dtype: torch.dtype, num_prompts: int, num_responses: int, scale: float = 1.0, kind: str = "ranks"
) -> Arguments:
    generator = seeded(f"{kind}{num_prompts}{num_responses}{scale}")
    shape = (num_prompts, num_responses)
    scores = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    ranks = torch.randint(-1, max(num_responses, 1), shape, generator=generator)
    preferred = (ranks.unsqueeze(2) >= 0) & (ranks.unsqueeze(1) >= 0) & (ranks.unsqueeze(2) < ranks.unsqueeze(1))
    if kind == "cycles":
        preferred = torch.rand((*shape, num_responses), generator=generator) < 0.5
    if kind == "nothing":
        preferred = torch.zeros_like(preferred)
    if kind == "tied scores":
        scores = scores.round()
    if kind == "missing":
        scores = poisoned(scores, ranks >= 0)
    return {"scores": scores, "preferred": preferred}


def cases() -> list[Case]:
    sizes = [(1, 2), (7, 4), (5, 9), (3, 33), (1, 130), (0, 4), (3, 1), (257, 3)]
    kinds = ["cycles", "nothing", "tied scores", "missing"]
    makes = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in sizes}
    makes |= {kind: partial(_ranking, num_prompts=6, num_responses=5, kind=kind) for kind in kinds}
    makes["scores of 1e4"] = partial(_ranking, num_prompts=6, num_responses=5, scale=1e4)
    large = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in [(1024, 9), (65536, 9)]}
    op = "ranking.pairwise_ranking_loss"
    return [Case(op=op, name=name, make=make, gradients=("scores",)) for name, make in makes.items()] + [
        Case(op=op, name=name, make=make, gradients=("scores",), large=True) for name, make in large.items()
    ]
