"""What the paper's models got on its public sets: table 14 of Ouyang et al. 2022, arXiv 2203.02155.

Models of another scale, asked by another program: the numbers show which way things went, not what to reach.
"""

from collections.abc import Mapping
from types import MappingProxyType

MODELS = ("GPT", "SFT", "PPO", "PPO-ptx")
SIZES = ("1.3B", "6B", "175B")

# metric -> unit, as `Measure` has it
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "entropy": "bits",
        "toxicity": "share",
        "true": "share",
        "true and informative": "share",
        "accuracy": "share",
        "F1": "points",
        "BLEU": "points",
        "ROUGE-L": "share",
    }
)
NUM_ITEMS: Mapping[str, int] = MappingProxyType(
    {
        "winogender": 120,
        "crows_pairs": 1508,
        "realtoxicity": 5000,
        "truthfulqa": 817,
        "drop": 9536,
        "quac": 7306,
        "squad_v2": 11873,
        "hellaswag": 10042,
        "rte": 277,
        "sst": 872,
        "wsc": 104,
        "wmt15_fr_en": 1500,
        "cnn_dm": 2354,
        "tldr": 2500,
    }
)
# What is doubtful about the numbers of a suite, a line each.
NOTES: Mapping[str, str] = MappingProxyType(
    {
        "realtoxicity": "the paper's toxicity is Perspective's, over prompts drawn evenly by their own toxicity",
        "truthfulqa": "the paper's judges are fine-tuned GPT-3 models; in the samples that it published, the wordings "
        "instruction and QA + instruct look exchanged",
        "quac": "the paper asks 7,306 questions, of which its authors' file has 7,354; which are left out is not said",
        "wsc": "the paper says that an answer has to contain the pronoun; it has to mean the noun",
        "cnn_dm": "the paper has the same numbers for CNN/DailyMail and TL;DR",
        "tldr": "the paper has the same numbers for CNN/DailyMail and TL;DR; its published samples of TL;DR score "
        "0.11 to 0.17, so that they are probably those of CNN/DailyMail",
    }
)

# suite, prompt, shots, metric -> the models, each in all sizes
_Row = tuple[float, float, float]
_TABLE: Mapping[tuple[str, str, int, str], tuple[_Row, _Row, _Row, _Row]] = {
    ("winogender", "basic", 0, "entropy"): (
        (0.750, 0.721, 0.735),
        (0.583, 0.535, 0.503),
        (0.698, 0.587, 0.618),
        (0.760, 0.719, 0.737),
    ),
    ("winogender", "respectful", 0, "entropy"): (
        (0.774, 0.753, 0.796),
        (0.561, 0.446, 0.479),
        (0.644, 0.562, 0.527),
        (0.608, 0.585, 0.696),
    ),
    ("winogender", "biased", 0, "entropy"): (
        (0.760, 0.773, 0.783),
        (0.561, 0.516, 0.540),
        (0.706, 0.567, 0.564),
        (0.676, 0.543, 0.690),
    ),
    ("crows_pairs", "basic", 0, "entropy"): (
        (0.448, 0.430, 0.410),
        (0.356, 0.326, 0.241),
        (0.355, 0.361, 0.326),
        (0.448, 0.434, 0.413),
    ),
    ("crows_pairs", "respectful", 0, "entropy"): (
        (0.419, 0.413, 0.362),
        (0.302, 0.260, 0.204),
        (0.281, 0.258, 0.270),
        (0.310, 0.273, 0.243),
    ),
    ("crows_pairs", "biased", 0, "entropy"): (
        (0.420, 0.419, 0.353),
        (0.305, 0.252, 0.187),
        (0.287, 0.288, 0.223),
        (0.314, 0.254, 0.205),
    ),
    ("realtoxicity", "basic", 0, "toxicity"): (
        (0.228, 0.229, 0.231),
        (0.198, 0.211, 0.211),
        (0.213, 0.214, 0.228),
        (0.228, 0.227, 0.234),
    ),
    ("realtoxicity", "respectful", 0, "toxicity"): (
        (0.211, 0.232, 0.233),
        (0.196, 0.196, 0.199),
        (0.198, 0.176, 0.205),
        (0.179, 0.204, 0.196),
    ),
    ("realtoxicity", "biased", 0, "toxicity"): (
        (0.250, 0.261, 0.285),
        (0.236, 0.250, 0.256),
        (0.254, 0.382, 0.427),
        (0.263, 0.512, 0.400),
    ),
    ("truthfulqa", "QA", 0, "true"): (
        (0.312, 0.220, 0.284),
        (0.324, 0.436, 0.515),
        (0.546, 0.586, 0.755),
        (0.297, 0.476, 0.712),
    ),
    ("truthfulqa", "instruction", 0, "true"): (
        (0.340, 0.414, 0.570),
        (0.360, 0.756, 0.665),
        (0.634, 0.928, 0.879),
        (0.355, 0.733, 0.815),
    ),
    ("truthfulqa", "QA + instruct", 0, "true"): (
        (0.335, 0.348, 0.438),
        (0.517, 0.659, 0.852),
        (0.807, 0.760, 0.944),
        (0.322, 0.494, 0.610),
    ),
    ("truthfulqa", "QA", 0, "true and informative"): (
        (0.193, 0.186, 0.251),
        (0.267, 0.253, 0.271),
        (0.524, 0.574, 0.752),
        (0.285, 0.464, 0.689),
    ),
    ("truthfulqa", "instruction", 0, "true and informative"): (
        (0.212, 0.212, 0.226),
        (0.282, 0.213, 0.257),
        (0.559, 0.187, 0.382),
        (0.339, 0.350, 0.494),
    ),
    ("truthfulqa", "QA + instruct", 0, "true and informative"): (
        (0.218, 0.267, 0.242),
        (0.288, 0.319, 0.206),
        (0.789, 0.704, 0.588),
        (0.242, 0.399, 0.315),
    ),
    ("hellaswag", "", 0, "accuracy"): (
        (0.549, 0.673, 0.781),
        (0.528, 0.672, 0.753),
        (0.507, 0.646, 0.743),
        (0.552, 0.690, 0.807),
    ),
    ("hellaswag", "", 15, "accuracy"): (
        (0.550, 0.677, 0.791),
        (0.516, 0.657, 0.741),
        (0.530, 0.671, 0.759),
        (0.559, 0.694, 0.820),
    ),
    ("wsc", "", 0, "accuracy"): (
        (0.567, 0.635, 0.740),
        (0.615, 0.606, 0.654),
        (0.663, 0.654, 0.683),
        (0.692, 0.587, 0.731),
    ),
    ("wsc", "", 15, "accuracy"): (
        (0.587, 0.654, 0.798),
        (0.615, 0.625, 0.779),
        (0.625, 0.596, 0.654),
        (0.644, 0.673, 0.788),
    ),
    ("rte", "", 0, "accuracy"): (
        (0.527, 0.617, 0.563),
        (0.487, 0.516, 0.570),
        (0.480, 0.708, 0.704),
        (0.538, 0.657, 0.668),
    ),
    ("rte", "", 15, "accuracy"): (
        (0.585, 0.682, 0.614),
        (0.574, 0.657, 0.700),
        (0.606, 0.585, 0.711),
        (0.545, 0.697, 0.765),
    ),
    ("sst", "", 0, "accuracy"): (
        (0.592, 0.616, 0.898),
        (0.873, 0.888, 0.907),
        (0.817, 0.820, 0.920),
        (0.812, 0.901, 0.900),
    ),
    ("sst", "", 15, "accuracy"): (
        (0.842, 0.930, 0.944),
        (0.909, 0.933, 0.936),
        (0.794, 0.880, 0.944),
        (0.838, 0.923, 0.938),
    ),
    ("quac", "", 0, "F1"): ((32.13, 38.19, 42.55), (34.52, 41.19, 45.22), (29.02, 37.64, 34.52), (35.04, 37.35, 41.60)),
    ("quac", "", 2, "F1"): ((36.02, 41.78, 45.38), (35.95, 43.13, 48.77), (31.81, 40.63, 36.00), (39.40, 42.42, 46.99)),
    ("squad_v2", "", 0, "F1"): (
        (51.97, 58.66, 64.30),
        (36.88, 46.53, 57.67),
        (45.37, 47.42, 43.68),
        (45.46, 47.23, 59.85),
    ),
    ("squad_v2", "", 4, "F1"): (
        (58.86, 62.33, 69.75),
        (46.62, 53.91, 65.90),
        (48.11, 52.34, 51.95),
        (58.33, 63.78, 69.93),
    ),
    ("drop", "", 0, "F1"): ((17.68, 19.96, 27.53), (13.29, 13.23, 15.79), (14.70, 12.34, 13.08), (14.71, 10.64, 15.23)),
    ("drop", "", 4, "F1"): ((25.43, 30.08, 35.27), (23.84, 30.99, 35.85), (21.61, 27.11, 27.78), (23.89, 29.39, 33.34)),
    ("wmt15_fr_en", "", 0, "BLEU"): (
        (30.65, 34.99, 38.92),
        (25.56, 33.25, 36.90),
        (19.85, 25.22, 24.16),
        (25.77, 30.41, 34.28),
    ),
    ("wmt15_fr_en", "", 15, "BLEU"): (
        (31.37, 35.49, 39.93),
        (24.73, 31.76, 35.07),
        (21.65, 29.96, 26.58),
        (27.67, 33.56, 36.76),
    ),
    ("cnn_dm", "", 0, "ROUGE-L"): (
        (0.182, 0.197, 0.196),
        (0.198, 0.235, 0.225),
        (0.218, 0.231, 0.227),
        (0.214, 0.231, 0.220),
    ),
    ("tldr", "", 0, "ROUGE-L"): (
        (0.182, 0.197, 0.196),
        (0.198, 0.235, 0.225),
        (0.218, 0.231, 0.227),
        (0.214, 0.231, 0.220),
    ),
}


def _by_name(rows: tuple[_Row, ...]) -> Mapping[str, Mapping[str, float]]:
    """model -> size -> value"""
    return {model: dict(zip(SIZES, row, strict=True)) for model, row in zip(MODELS, rows, strict=True)}


def _by_task() -> Mapping[tuple[str, str, int], Mapping[str, Mapping[str, Mapping[str, float]]]]:
    found: dict[tuple[str, str, int], dict[str, Mapping[str, Mapping[str, float]]]] = {}
    for (suite, prompt, shots, metric), rows in _TABLE.items():
        found.setdefault((suite, prompt, shots), {})[metric] = _by_name(rows)
    return found


PAPER = _by_task()
"""(suite, prompt, shots) -> metric -> model -> size -> value, in the unit of UNITS."""
