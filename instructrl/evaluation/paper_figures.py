"""Figures of the paper (3, 4, 31, 33 to 38) as far as they can be read off, shapes and not digits; and what it says in
words.

Values in the paper's figures are not printed: these were read by eye. The models have 1.3B to 175B parameters, their
judges are people, their tasks public sets: another scale in every respect than the miniature's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MARK = "Read off the figure by eye; models, judges and tasks of another scale."


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFigure:
    """title: what is drawn. source: its place in the paper. lines: label -> (x, y) in order. dashed: label -> y."""

    title: str
    source: str
    x_label: str
    log_x: bool
    lines: Mapping[str, tuple[tuple[float, float], ...]]
    dashed: Mapping[str, float]
    note: str = MARK


# Study -> figures. Where only the ends and the middle of a line can be read, only they stand here.
PAPER_FIGURES: Mapping[str, tuple[PaperFigure, ...]] = {
    "ptx": (
        PaperFigure(
            title="F1, 1.3B",
            source="figure 33, left",
            x_label="ptx_coef (gamma)",
            log_x=True,
            lines={"SQuADv2": ((1, 48), (20, 59), (100, 60)), "DROP": ((1, 18), (20, 25), (100, 27))},
            dashed={"GPT on SQuADv2": 59, "GPT on DROP": 25},
        ),
        PaperFigure(
            title="Validation reward, 1.3B",
            source="figure 33, right",
            x_label="ptx_coef (gamma)",
            log_x=True,
            lines={"reward": ((1, -0.6), (100, -1.6))},
            dashed={},
        ),
    ),
    "kl_remedy": (
        PaperFigure(
            title="F1, 1.3B, reference GPT",
            source="figure 34, left",
            x_label="kl_coef (beta)",
            log_x=True,
            lines={"SQuADv2": ((0.001, 0), (0.1, 54), (2, 50)), "DROP": ((0.001, 3), (0.1, 21), (2, 20))},
            dashed={"GPT on SQuADv2": 59, "GPT on DROP": 25},
            note=f"{MARK} At 2 the lines lie below their peaks and below GPT.",
        ),
        PaperFigure(
            title="Validation reward, 1.3B",
            source="figure 34, right",
            x_label="kl_coef (beta)",
            log_x=True,
            lines={"reward": ((0.001, 3), (2, -2.8))},
            dashed={},
        ),
    ),
    "length": (
        PaperFigure(
            title="F1, 1.3B",
            source="figure 35",
            x_label="episodes",
            log_x=True,
            lines={"SQuADv2": ((100, 62), (512_000, 57.5)), "DROP": ((100, 27), (512_000, 25.8))},
            dashed={},
            note=f"{MARK} The ends alone; late, both lines lie below those of GPT.",
        ),
    ),
    "kl": (
        PaperFigure(
            title="Likert, with the mix",
            source="figure 36",
            x_label="kl_coef (beta)",
            log_x=True,
            lines={"Likert": ((0, 2.1), (0.001, 3.0), (0.01, 4.2), (0.03, 3.9), (0.1, 3.8), (2, 3.2))},
            dashed={},
        ),
    ),
    "initial_mix": (
        PaperFigure(
            title="Likert",
            source="figure 37",
            x_label="share of pretraining text",
            log_x=False,
            lines={"one epoch": ((0, 3.95), (0.1, 4.02), (0.5, 3.95)), "two epochs": ((0, 4.0),)},
            dashed={},
        ),
    ),
}

# What the paper says in words where no line can be read off.
PAPER_WORDS: Mapping[str, str] = {
    "labelers": "The paper, E.2: 72.4 ± 0.4% on labelers of their own groups, 69.6 ± 0.9% on those of the group left "
    "out; five folds, three seeds. Models and labelers of another scale.",
    "learning_rate": "The paper, figure 38: without the mix, every rate above 8.05e-6 diverged; with it, results "
    "depend less on the rate. The one with the highest Likert score was taken.",
    "batch": "The paper, E.11: with a ratio of 4 the pretraining loss often rises during training; 32 is better by "
    "Likert and several times slower; 8 was taken. Of the batches 64 to 1024, 512 was best; of the minibatches 8 to "
    "64, 32 was slightly best.",
    "pairs_as_rows": "The paper, footnote 5: shuffled into one data set, the pairs overfit in a single pass.",
    "over_optimisation": "The paper has no such figure: it stops early and takes beta from figure 36. The inverted U "
    "of gold scores over KL is that of Stiennon et al. (2020).",
}

# Figures 3, 31 and 4 by model: headings with what they are of, and values.
BY_JUDGE_HEADINGS: tuple[tuple[str, str], ...] = (
    ("Win rate against 175B SFT", "1.3B, 6B, 175B; figure 3"),
    ("Likert", "1.3B, 6B, 175B; figure 31"),
    ("Attempts the instruction", "figure 4"),
    ("Follows constraints", "figure 4"),
    ("Hallucinations", "figure 4"),
    ("Appropriate", "figure 4"),
)
BY_JUDGE: Mapping[str, tuple[str, ...]] = {
    "GPT": ("26, 32, 34%", "2.1, 2.0, 2.5", "70%", "20%", "45%", "75%"),
    "GPT (prompted)": ("30, 34, 38%", "2.6, 2.8, 3.1", "75%", "28%", "30%", "78%"),
    "SFT": ("34, 40, 46%", "3.2, 3.3, 3.7", "78%", "35%", "8%", "80%"),
    "PPO": ("52, 56, 61%", "4.5, 4.7, 4.9", "79%", "45%", "20%", "82%"),
    "PPO-ptx": ("53, 58, 63%", "4.2, 4.3, 4.6", "80%", "48%", "18%", "83%"),
}
