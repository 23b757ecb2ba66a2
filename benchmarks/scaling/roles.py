"""Bytes that a PPO step holds in the memory of its networks, by arithmetic, in its two forms.

    python -m benchmarks.scaling.roles [--rank 16]

All weights: policy and value function learn, with a gradient and two moments of Adam in float32, and float32 masters
where weights are bfloat16; reference and reward model are weights alone; the average is float32. Adapters: one base
for all, beside it each role's adapter in float32, the reference's among them. Scalar networks have no unembedding.
Activations and logits are not in it; the merged copy of adapted layers that exists while responses are sampled has a
column of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.core.tables import command, markdown

FLOAT = 4
DTYPES = {"float32": 4, "bfloat16": 2}
# Gradient, and Adam's two moments.
LEARNING = 3 * FLOAT
NOTHING = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A network of Llama's kind. key_width: of all key heads of a layer together."""

    layers: int
    width: int
    hidden: int
    key_width: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear layers of a block: queries, keys, values, outputs, gate, up, down."""
        d, k, h = self.width, self.key_width, self.hidden
        return (d, d), (d, k), (d, k), (d, d), (d, h), (d, h), (h, d)

    @property
    def trunk(self) -> int:
        """Parameters below the head."""
        block = sum(a * b for a, b in self.linear) + 2 * self.width
        return self.layers * block + self.vocabulary * self.width + self.width

    @property
    def language_model(self) -> int:
        return self.trunk + (0 if self.tied else self.vocabulary * self.width)

    @property
    def scalar(self) -> int:
        return self.trunk + self.width

    def adapter(self, rank: int) -> int:
        return self.layers * sum(rank * (a + b) for a, b in self.linear)

    @property
    def adapted(self) -> int:
        """Parameters of the layers that get an adapter."""
        return self.layers * sum(a * b for a, b in self.linear)


SHAPES = {
    "135M (SmolLM2)": Shape(layers=30, width=576, hidden=1536, key_width=192, vocabulary=49_152, tied=True),
    "1B (Llama 3.2)": Shape(layers=16, width=2048, hidden=8192, key_width=512, vocabulary=128_256, tied=True),
    "7B (Llama 2)": Shape(layers=32, width=4096, hidden=11_008, key_width=4096, vocabulary=32_000, tied=False),
    "70B (Llama 3.1)": Shape(layers=80, width=8192, hidden=28_672, key_width=1024, vocabulary=128_256, tied=False),
}


def full(shape: Shape, dtype: str) -> Mapping[str, int]:
    """By role."""
    weight = DTYPES[dtype]
    learning = weight + LEARNING + (FLOAT if weight < FLOAT else NOTHING)
    return {
        "base": NOTHING,
        "policy": learning * shape.language_model,
        "reference": weight * shape.language_model,
        "reward model": (weight * shape.trunk) + FLOAT * shape.width,
        "value function": learning * shape.trunk + (FLOAT + LEARNING) * shape.width,
        "average": FLOAT * shape.language_model,
    }


def shared(shape: Shape, dtype: str, rank: int) -> Mapping[str, int]:
    """By role, on one base."""
    adapter, head = shape.adapter(rank), shape.width
    return {
        "base": DTYPES[dtype] * shape.language_model,
        "policy": (FLOAT + LEARNING) * adapter,
        "reference": FLOAT * adapter,
        "reward model": FLOAT * (adapter + head),
        "value function": (FLOAT + LEARNING) * (adapter + head),
        "average": FLOAT * adapter,
    }


def times_the_base(shape: Shape, dtype: str, roles: Mapping[str, int]) -> float:
    return sum(roles.values()) / (DTYPES[dtype] * shape.language_model)


def table(rank: int) -> str:
    """As Markdown, in GB (10^9 bytes)."""
    rows = []
    for name, shape in SHAPES.items():
        for dtype, weight in DTYPES.items():
            forms = {"all weights": full(shape, dtype), f"adapters, rank {rank}": shared(shape, dtype, rank)}
            for form, roles in forms.items():
                merged = 0 if form == "all weights" else weight * shape.adapted
                cells = [_gb(x) for x in (*roles.values(), sum(roles.values()), merged)]
                rows.append([name, dtype, form, *cells[:-1], f"{times_the_base(shape, dtype, roles):.2f}", cells[-1]])
    columns = ("network", "weights", "form", *full(next(iter(SHAPES.values())), "float32"), "together")
    return markdown((*columns, "times the weights", "merged while sampling"), rows)


def _gb(x: int) -> str:
    return "" if x == 0 else f"{x / 1e9:.{0 if x >= 1e11 else 1 if x >= 1e10 else 2}f}"


def main() -> None:
    print(table(command(__doc__, rank=16).rank))


if __name__ == "__main__":
    main()
