"""Cases of `instructrl.ops.ranking`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from instructrl.ops.cases.case import Arguments, Case, poisoned, seeded
from instructrl.ops.ranking_settings import RankingSettings, TieSettings


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


def _with_options(
    dtype: torch.dtype, options: str, num_prompts: int = 6, num_responses: int = 5, scale: float = 1.0
) -> Arguments:
    """options: of margins, weights and smoothing, with the number of dimensions of the first two."""
    found = _ranking(dtype, num_prompts, num_responses, scale, "cycles")
    generator, preferred = seeded(options), found["preferred"]
    shapes = {"0": (), "1": (num_prompts,), "3": preferred.shape}
    names = [name for name in ("margins", "weights") if name in options]
    for name in names:
        shape = shapes[options[options.index(name) + len(name)]]
        numbers = torch.rand(shape, generator=generator)
        # Where nothing is preferred no number is read.
        found[name] = poisoned(numbers, preferred) if len(shape) == 3 else numbers
    if "smoothing" in options:
        found["settings"] = RankingSettings(label_smoothing=0.1)
    return found


def _with_ties(dtype: torch.dtype, settings: TieSettings, weights: int | None = None, **sizes: Any) -> Arguments:
    found = _ranking(dtype, **sizes)
    kind = torch.rand(found["preferred"].shape, generator=seeded(settings.model))
    undecided = ~(found["preferred"] | found["preferred"].transpose(1, 2))
    found["tied"] = undecided & (kind < 0.4) & settings.has_ties
    if weights is not None:
        numbers = torch.rand(found["preferred"].shape, generator=seeded("weights"))
        numbers = numbers + numbers.transpose(1, 2)
        found["weights"] = numbers if weights == 3 else numbers[:, 0, 0]
    return found | {"settings": settings}


def _plackett_luce(dtype: torch.dtype, kind: str = "", **sizes: Any) -> Arguments:
    found = _ranking(dtype, **sizes)
    shape = found["scores"].shape
    ranks = torch.randint(-1, max(shape[1], 1), shape, generator=seeded(kind))
    if kind == "nothing":
        ranks = torch.where(torch.arange(shape[1]) == 1, ranks, -1)
    scores = found["scores"]
    if kind in ("missing", "fractions"):
        scores = poisoned(scores, ranks >= 0)
    if kind == "fractions":
        ranks = torch.where(ranks >= 0, ranks / 3, torch.nan)
    return {"scores": scores, "ranks": ranks}


def _pairwise_options() -> list[Case]:
    options = ["margins3", "margins0 weights1", "weights3 smoothing", "margins1 weights0 smoothing", "smoothing"]
    makes = {name: partial(_with_options, options=name) for name in options}
    everything = partial(_with_options, options="margins3 weights3 smoothing")
    makes["all, 17x3"] = partial(everything, num_prompts=17, num_responses=3)
    makes["all, 1x33"] = partial(everything, num_prompts=1, num_responses=33)
    makes["all, scores of 1e4"] = partial(everything, scale=1e4)
    makes["all, no prompts"] = partial(everything, num_prompts=0)
    return _cases("ranking.pairwise_ranking_loss", makes, partial(everything, num_prompts=4096, num_responses=9))


def _tied_cases() -> list[Case]:
    rao_kupper, davidson = TieSettings(), TieSettings(model="davidson", parameter=0.7)
    makes = {}
    for settings in (rao_kupper, davidson):
        model = partial(_with_ties, settings=settings)
        makes[f"{settings.model}, 7x4"] = partial(model, num_prompts=7, num_responses=4)
        makes[f"{settings.model}, weights"] = partial(model, num_prompts=17, num_responses=5, weights=3)
        makes[f"{settings.model}, scores of 1e4"] = partial(model, num_prompts=6, num_responses=5, scale=1e4)
        makes[f"{settings.model}, missing"] = partial(model, num_prompts=6, num_responses=5, kind="nothing")
    makes["weights of prompts"] = partial(_with_ties, settings=davidson, num_prompts=2, num_responses=17, weights=1)
    makes["cycles"] = partial(_with_ties, settings=rao_kupper, num_prompts=6, num_responses=5, kind="cycles")
    makes["no ties"] = partial(_with_ties, settings=TieSettings(parameter=1.0), num_prompts=5, num_responses=3)
    large = partial(_with_ties, settings=davidson, num_prompts=4096, num_responses=9)
    return _cases("ranking.tied_ranking_loss", makes, large)


def _plackett_luce_cases() -> list[Case]:
    sizes = [(1, 2), (7, 4), (19, 9), (2, 33), (0, 4), (3, 1)]
    makes = {f"{p}x{k}": partial(_plackett_luce, num_prompts=p, num_responses=k) for p, k in sizes}
    for kind in ("missing", "nothing", "fractions"):
        makes[kind] = partial(_plackett_luce, kind=kind, num_prompts=6, num_responses=5)
    makes["scores of 1e4"] = partial(_plackett_luce, num_prompts=6, num_responses=5, scale=1e4)
    large = partial(_plackett_luce, num_prompts=4096, num_responses=9)
    return _cases("ranking.plackett_luce_loss", makes, large)


def _cases(
    op: str, makes: Mapping[str, Callable[[torch.dtype], Arguments]], large: Callable[..., Arguments]
) -> list[Case]:
    found = [Case(op=op, name=name, make=make, gradients=("scores",)) for name, make in makes.items()]
    return [*found, Case(op=op, name="large options", make=large, gradients=("scores",), large=True)]


def cases() -> list[Case]:
    sizes = [(1, 2), (7, 4), (5, 9), (3, 33), (1, 130), (0, 4), (3, 1), (257, 3)]
    kinds = ["cycles", "nothing", "tied scores", "missing"]
    makes = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in sizes}
    makes |= {kind: partial(_ranking, num_prompts=6, num_responses=5, kind=kind) for kind in kinds}
    makes["scores of 1e4"] = partial(_ranking, num_prompts=6, num_responses=5, scale=1e4)
    large = {f"{p}x{k}": partial(_ranking, num_prompts=p, num_responses=k) for p, k in [(1024, 9), (65536, 9)]}
    op = "ranking.pairwise_ranking_loss"
    plain = [Case(op=op, name=name, make=make, gradients=("scores",)) for name, make in makes.items()] + [
        Case(op=op, name=name, make=make, gradients=("scores",), large=True) for name, make in large.items()
    ]
    return [*plain, *_pairwise_options(), *_tied_cases(), *_plackett_luce_cases()]
