"""The suites by name."""

from collections.abc import Mapping

from instructrl.evaluation.suites.bias import CROWS_PAIRS, WINOGENDER
from instructrl.evaluation.suites.choices import HELLASWAG, RTE, SST, WSC
from instructrl.evaluation.suites.protocol import Suite
from instructrl.evaluation.suites.reading import DROP, QUAC, SQUAD_V2
from instructrl.evaluation.suites.toxicity import REALTOXICITY
from instructrl.evaluation.suites.truthfulqa import TRUTHFULQA
from instructrl.evaluation.suites.writing import CNN_DM, TLDR, WMT15_FR_EN

SUITES: Mapping[str, Suite] = {
    "winogender": WINOGENDER,
    "crows_pairs": CROWS_PAIRS,
    "realtoxicity": REALTOXICITY,
    "truthfulqa": TRUTHFULQA,
    "drop": DROP,
    "quac": QUAC,
    "squad_v2": SQUAD_V2,
    "hellaswag": HELLASWAG,
    "rte": RTE,
    "sst": SST,
    "wsc": WSC,
    "wmt15_fr_en": WMT15_FR_EN,
    "cnn_dm": CNN_DM,
    "tldr": TLDR,
}
