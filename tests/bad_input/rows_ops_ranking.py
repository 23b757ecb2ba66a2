"""Arguments of the ranking losses with margins, weights, ties and choices; as in `rows_ops.py`."""

import torch
from op_row import NAMES, B, OpRow, T

from instructrl.ops.ranking_settings import RankingSettings, TieSettings

NAMES |= {
    "RankingSettings": RankingSettings,
    "TieSettings": TieSettings,
    # [B, T, T]; one pair, the first response of the first prompt over its second
    "FIRST": (torch.arange(B * T * T) == 1).view(B, T, T),
}

ROWS = [
    OpRow(
        what="negative weight of a prompt",
        call="ranking.pairwise_ranking_loss(X, FIRST, weights=-X[:, 0] - 1)",
        message="weights: found a negative, infinite or missing weight of a pair that counts, accepted are"
        " finite numbers of at least 0",
    ),
    OpRow(
        what="weight that is not a number, of a pair that counts",
        call="ranking.pairwise_ranking_loss(X, FIRST, weights=torch.tensor(NAN))",
        message="weights: found a negative, infinite or missing weight of a pair that counts, accepted are"
        " finite numbers of at least 0",
    ),
    OpRow(
        what="weights a response",
        call="ranking.pairwise_ranking_loss(X, FIRST, weights=X)",
        message="weights: found shape (2, 3), accepted are (), (2,), (2, 3, 3), as scores has it",
    ),
    OpRow(
        what="number for a tensor of margins",
        call="ranking.pairwise_ranking_loss(X, FIRST, margins=1.0)",
        message="margins: found float, accepted is a tensor",
    ),
    OpRow(
        what="whole numbers for margins",
        call="ranking.pairwise_ranking_loss(X, FIRST, margins=TOKENS[:, 0])",
        message="margins: found dtype torch.int64, accepted are float32, bfloat16, float16, float64",
    ),
    OpRow(
        what="margins on another device",
        call="ranking.pairwise_ranking_loss(X, FIRST, margins=META[:, 0])",
        message="margins: found device meta, accepted is cpu, where scores is",
    ),
    OpRow(
        what="settings of ties for those of preferences",
        call="ranking.pairwise_ranking_loss(X, FIRST, settings=TieSettings())",
        message="settings: found TieSettings, accepted is RankingSettings",
    ),
    OpRow(
        what="half of the labels wrong",
        call="RankingSettings(label_smoothing=0.5)",
        message="label_smoothing: found 0.5, accepted is a number below: at 0.5 no order is preferred",
    ),
    OpRow(
        what="more than half of the labels wrong",
        call="RankingSettings(label_smoothing=0.7)",
        message="label_smoothing: found 0.7, accepted is a number from 0 to 0.5",
    ),
    OpRow(
        what="share of wrong labels below 0",
        call="RankingSettings(label_smoothing=-0.1)",
        message="label_smoothing: found -0.1, accepted is a number from 0 to 0.5",
    ),
    OpRow(
        what="pair that is tied and preferred",
        call="ranking.tied_ranking_loss(X, FIRST, FIRST.transpose(1, 2))",
        message="tied: found a tied pair that is preferred, accepted are pairs of one of the two kinds",
    ),
    OpRow(
        what="tie that the parameter does not allow",
        call="ranking.tied_ranking_loss(X, PREFERRED, FIRST, settings=TieSettings(parameter=1.0))",
        message="tied: found a tie with rao_kupper and the parameter 1.0, accepted are no ties, or a larger parameter",
    ),
    OpRow(
        what="tie of two weights",
        call="ranking.tied_ranking_loss(X, PREFERRED, FIRST, weights=1.0 + FIRST)",
        message="weights: found different weights in the two places of a tie, accepted are equal ones",
    ),
    OpRow(
        what="ties of another K",
        call="ranking.tied_ranking_loss(X, FIRST, FIRST[:, :2, :2])",
        message="tied: found shape (2, 2, 2), accepted is (2, 3, 3), as scores has it",
    ),
    OpRow(
        what="unknown model of ties",
        call='TieSettings(model="bradley_terry")',
        message="model: found 'bradley_terry', accepted are rao_kupper, davidson",
    ),
    OpRow(
        what="parameter below that of no ties",
        call="TieSettings(parameter=0.5)",
        message="parameter: found 0.5, accepted is a number from 1 to 1e+06",
    ),
    OpRow(
        what="negative parameter of ties",
        call='TieSettings(model="davidson", parameter=-1.0)',
        message="parameter: found -1.0, accepted is a number from 0 to 1e+06",
    ),
    OpRow(
        what="ranks of other responses",
        call="ranking.plackett_luce_loss(X, TOKENS[:, :2])",
        message="ranks: found shape (2, 2), accepted is (2, 3), as scores has it",
    ),
    OpRow(
        what="preferences for ranks",
        call="ranking.plackett_luce_loss(X, MASK)",
        message="ranks: found dtype torch.bool, accepted are integers and floating-point numbers",
    ),
]
