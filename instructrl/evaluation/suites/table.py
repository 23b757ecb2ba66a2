"""The suites by name."""

from collections.abc import Mapping

from instructrl.evaluation.suites.bias import CROWS_PAIRS, WINOGENDER
from instructrl.evaluation.suites.protocol import Suite
from instructrl.evaluation.suites.reading import DROP, QUAC, SQUAD_V2
from instructrl.evaluation.suites.truthfulqa import TRUTHFULQA

SUITES: Mapping[str, Suite] = {
    "winogender": WINOGENDER,
    "crows_pairs": CROWS_PAIRS,
    "truthfulqa": TRUTHFULQA,
    "drop": DROP,
    "quac": QUAC,
    "squad_v2": SQUAD_V2,
}
