"""Cases of `instructrl.ops.advantages`."""

from functools import partial

import torch

from instructrl.ops.advantage_settings import GAESettings, RewardSettings, WhitenSettings
from instructrl.ops.advantages import Ends
from instructrl.ops.cases.case import Arguments, Case, poisoned, random_mask, seeded
from instructrl.ops.ppo_settings import KLEstimator


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


def _general(
    dtype: torch.dtype,
    kind: str,
    settings: GAESettings | RewardSettings,
    size: tuple[int, int] = (3, 19),
    ends: tuple[str, ...] = (),
    rates: bool = False,
) -> Arguments:
    """What `_rewards` makes, with settings, with the `ends` that are named, and with `rates` as tensors."""
    fused = isinstance(settings, RewardSettings)
    arguments = _rewards(dtype, *size, kind=kind, fused=fused)
    generator, mask, values = seeded(f"{settings}{ends}"), arguments["mask"], arguments["values"]
    if kind == "gaps" and size[1] > 256:
        # A tile of a GPU kernel in which nothing counts, behind the last token; a gap over the edge of two.
        mask[0, 230:], mask[1, 250:260] = False, False
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    made = {
        "dones": torch.rand(mask.shape, generator=generator) < 0.2,
        "next_values": poisoned(draw(mask.shape).to(dtype), mask),
        "bootstrap": draw((size[0],)).to(dtype),
    }
    if ends:
        arguments["ends"] = Ends(**{name: made[name] for name in ends})
    if rates:
        arguments |= {"gamma": torch.tensor(0.9), "lam": torch.rand(size[0], generator=generator)}
    if fused and settings.score_at == "behind":
        # One behind the last counted token the value is read.
        arguments["values"] = torch.where(values.isfinite(), values, draw(mask.shape).to(dtype))
    return arguments | {"settings": settings}


def _general_cases() -> list[Case]:
    count = GAESettings(gaps="count", value_lam=1.0)
    behind, packed_behind = (RewardSettings(score_at="behind", score_clip=0.5, gae=x) for x in (GAESettings(), count))
    clamped = KLEstimator(estimator="k3", input_clamp=1.0, output_clamp=0.4)
    k2 = RewardSettings(kl=KLEstimator(estimator="k2"))
    distance = RewardSettings(kl=KLEstimator(estimator="abs"), gae=GAESettings(value_lam=1.0))
    every_end = ("dones", "next_values")
    op, fused = "advantages.generalized_advantages", "advantages.ppo_advantages"
    # Longer ones go over the tiles of GPU kernels.
    return [
        Case(op=name, name=title, make=partial(_general, kind=kind, settings=settings, **others))
        for name, title, kind, settings, others in [
            (op, "dones", "gaps", GAESettings(), {"ends": ("dones", "bootstrap"), "size": (2, 300)}),
            (op, "next values", "gaps", GAESettings(value_lam=0.5), {"ends": every_end, "rates": True}),
            (op, "gaps that count", "gaps", count, {"ends": ("bootstrap",), "size": (2, 300)}),
            (op, "packed dones", "packed", count, {"ends": ("dones", "bootstrap"), "rates": True}),
            (fused, "behind", "discounted", behind, {"size": (2, 300)}),
            (fused, "packed behind", "packed", packed_behind, {}),
            (fused, "gaps that count, k3", "gaps", RewardSettings(kl=clamped, gae=count), {"size": (2, 300)}),
            (fused, "dones, k2", "gaps", k2, {"ends": every_end}),
            (fused, "packed, absolute", "packed", distance, {"ends": ("bootstrap",), "rates": True}),
        ]
    ]


def _whiten(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    kept: float = 0.7,
    num_groups: int = 0,
    settings: WhitenSettings | None = None,
) -> Arguments:
    generator = seeded(f"whiten{shape}{kept}")
    mask = random_mask(shape, generator, kept)
    x = 3.0 + torch.randn(shape, generator=generator, dtype=torch.float64)
    arguments: Arguments = {} if settings is None else {"settings": settings}
    if num_groups:
        # One less than there could be: the last group is empty.
        groups = torch.randint(0, num_groups - 1, shape[:1], generator=generator)
        arguments |= {"groups": groups, "num_groups": num_groups}
    return {"x": poisoned(x.to(dtype), mask), "mask": mask} | arguments


def _whiten_cases() -> list[Case]:
    op = "advantages.masked_whiten"
    makes = {str(shape): partial(_whiten, shape=shape) for shape in [(4, 5), (3, 257), (4097,), (0, 3), (2, 3, 4)]}
    makes |= {"all masked": partial(_whiten, shape=(3, 4), kept=0.0), "one": partial(_whiten, shape=(1,), kept=1.0)}
    population = WhitenSettings(ddof=0, epsilon=1e-5, epsilon_at="deviation")
    for shape, groups, settings in [
        ((3, 257), 0, population),
        ((4, 5), 0, WhitenSettings(center=False, epsilon=0.5, epsilon_at="clamp")),
        ((9, 70), 4, WhitenSettings(center=False)),
        ((3, 4100), 3, population),
        ((5, 2, 3), 3, WhitenSettings(epsilon=2.0, epsilon_at="clamp")),
        ((6,), 4, WhitenSettings()),
        ((0, 3), 2, WhitenSettings()),
    ]:
        makes[f"{shape} {settings.epsilon_at}, {groups} groups"] = partial(
            _whiten, shape=shape, num_groups=groups, settings=settings
        )
    cases = [Case(op=op, name=name, make=make) for name, make in makes.items()]
    return [*cases, Case(op=op, name="512x1024", make=partial(_whiten, shape=(512, 1024)), large=True)]


def cases() -> list[Case]:
    return [*_advantage_cases(), *_general_cases(), *_whiten_cases()]
