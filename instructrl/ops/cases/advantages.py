"""Cases of `instructrl.ops.advantages`."""

from functools import partial

import torch

from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded


def _rewards(dtype: torch.dtype, num_rows: int, length: int, kind: str = "", fused: bool = False) -> Arguments:
    generator = seeded(f"{kind}{num_rows}{length}")
    shape: tuple[int, ...] = (num_rows, length)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < torch.randint(0, length + 1, (num_rows, 1), generator=generator)
    if kind in ("gaps", "packed"):
        mask = random_mask(shape, generator, 0.5)
    elif kind == "all masked":
        mask = torch.zeros(shape, dtype=torch.bool)
    arguments: Arguments = {"gamma": 0.9, "lam": 0.8} if kind == "discounted" else {}
    scores = draw((num_rows,)).to(dtype)
    if kind == "packed":
        cuts = torch.randint(0, num_rows * length + 1, (num_rows - 1,), generator=generator).sort().values
        cuts[0] = cuts[1]  # One sequence is empty.
        arguments["cu_seqlens"] = torch.cat([torch.tensor([0]), cuts, torch.tensor([num_rows * length])])
        mask, shape = mask.flatten(), (num_rows * length,)
    for name in ("logprobs", "ref_logprobs", "values") if fused else ("rewards", "values"):
        arguments[name] = poisoned(draw(shape).to(dtype), mask)
    if fused:
        arguments |= {"scores": scores, "kl_coef": 0.02}
    return arguments | {"mask": mask}


def _advantage_cases() -> list[Case]:
    # Lengths on both sides of where GPU kernels change how they cut a row.
    sizes = [(1, 1), (4, 5), (3, 257), (2, 2000), (2, 4097), (1, 9000), (0, 3), (2, 0)]
    kinds = ("gaps", "packed", "all masked", "discounted")
    cases = []
    for op, fused in (("advantages.generalized_advantages", False), ("advantages.ppo_advantages", True)):
        makes = {f"{b}x{t}": partial(_rewards, num_rows=b, length=t, fused=fused) for b, t in sizes}
        makes |= {kind: partial(_rewards, num_rows=5, length=19, kind=kind, fused=fused) for kind in kinds}
        cases += [Case(op=op, name=name, make=make) for name, make in makes.items()]
        large = {
            f"{b}x{t}": partial(_rewards, num_rows=b, length=t, fused=fused) for b, t in [(512, 1024), (16, 32768)]
        }
        cases += [Case(op=op, name=name, make=make, large=True) for name, make in large.items()]
    return cases


def _whiten(dtype: torch.dtype, shape: tuple[int, ...], kept: float = 0.7) -> Arguments:
    generator = seeded(f"whiten{shape}{kept}")
    mask = random_mask(shape, generator, kept)
    x = 3.0 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"x": poisoned(x.to(dtype), mask), "mask": mask}


def _whiten_cases() -> list[Case]:
    op = "advantages.masked_whiten"
    makes = {str(shape): partial(_whiten, shape=shape) for shape in [(4, 5), (3, 257), (4097,), (0, 3), (2, 3, 4)]}
    makes |= {"all masked": partial(_whiten, shape=(3, 4), kept=0.0), "one": partial(_whiten, shape=(1,), kept=1.0)}
    cases = [Case(op=op, name=name, make=make) for name, make in makes.items()]
    return [*cases, Case(op=op, name="512x1024", make=partial(_whiten, shape=(512, 1024)), large=True)]


def cases() -> list[Case]:
    return [*_advantage_cases(), *_whiten_cases()]
