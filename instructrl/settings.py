"""What the settings of all packages check. They stand in the `settings.py` of each and import no torch: a command line
is read, or refused, at once."""

import math
from typing import Literal

# Where a process may have its networks; "auto" is what it finds.
DeviceName = Literal["auto", "cuda", "mps", "cpu"]


def require_not_negative(config: object, *names: str) -> None:
    """Raise ValueError for a field of a config that is not finite and at least 0."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: found {value}, accepted are 0 and positive numbers")


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError for a field of a config that is not above 0 and finite; None counts as not set."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: found {value}, accepted are positive numbers")
