"""What is done to the logits of a head before their softmax: a scale and a soft cap."""

from dataclasses import dataclass

from instructrl.ops import checks


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitSettings:
    """`z = softcap * tanh(scale * logits / softcap)`, or `z = scale * logits` without a cap; then `z / temperature`.

    The cap is that of Gemma 2 (arXiv 2408.00118, section 2; its models have 30), the scale that of Cohere's and
    Granite's heads. A logit of -inf stays -inf, and through a cap it has gradient 0: a token that is excluded stays
    excluded.

    scale: a finite number above 0. softcap: a finite number above 0, or None for none.
    Raises: ValueError for other numbers, TypeError for what is no number.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        checks.positive("scale", self.scale)
        if self.softcap is not None:
            checks.positive("softcap", self.softcap)

    def folded(self, temperature: float) -> tuple[float, float]:
        """(temperature, tanh_slope) as kernels take them.

        A scale without a cap is part of the temperature, and the slope is 0. With a cap the numbers under the softmax
        are `tanh(tanh_slope * logits) / temperature`: the factor of the tanh is part of the temperature.
        """
        if self.softcap is None:
            return temperature / self.scale, 0.0
        return temperature / self.softcap, self.scale / self.softcap


PLAIN = LogitSettings()
"""Logits as they are."""
