"""Rows of options: the op with the option, the formula as it is written without us, and the op without the option."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.rows import NATIVE, WITHOUT, Provider, Row, V
from benchmarks.core.workloads import BOTH, Draw, Inputs, Workload, linear, running
from benchmarks.ops import option_formulas as plain
from instructrl.ops import ranking, vocab_parallel
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.ranking_settings import RankingSettings, TieSettings
from instructrl.ops.vocab_parallel import VocabShards

Added = Mapping[str, Callable[[Draw, Inputs], Any]]


def without(names: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **x: call(**{name: value for name, value in x.items() if name not in names})


def option(
    text: str, work: Workload, formula: Callable[..., Any], call: Callable[..., Any] | None = None, *,
    compiled: Callable[..., Any] | None = None, add: Added | None = None, drop: tuple[str, ...] = (),
    alone: bool = False, part: str = BOTH, shape: tuple[int, ...], **row: Any,
) -> Row:  # fmt: skip
    """work: the op without the option. formula, call: with it, from the same keyword arguments; call: the op itself
    where that is only given more. add: more inputs, from a draw and the op's. drop: names that are not passed. alone:
    it cannot be left out."""
    added = add or {}

    def make(draw: Draw, *shape: int) -> Inputs:
        made = work.make(draw, *shape)
        for name in set(work.leaves) & set(drop):
            # Of the op without the option it is still a leaf.
            made[name].requires_grad_()
        return made | {name: one(draw, made) for name, one in added.items()}

    made = replace(
        work, make=make, call=without(drop, call or work.call), plain=without(drop, formula), compiled=compiled,
        leaves=tuple(name for name in work.leaves if name not in drop),
    )  # fmt: skip
    plainly = Provider(run=running(without(added, work.call), work.leaves, part), backend=NATIVE, compared=False)
    name = f"{work.op.split('.')[1]} {'x'.join(map(str, shape))}, {text}"
    return Row(name=name, work=made, part=part, shape=shape, others={} if alone else {WITHOUT: plainly}, **row)


def noise(like: str) -> Callable[[Draw, Inputs], Tensor]:
    """Non-negative numbers of the shape of another input."""
    return lambda draw, x: draw.normal(*x[like].shape).abs()


def allowed(draw: Draw, x: Inputs) -> Tensor:
    """Nine ids of ten, those of the inputs among them."""
    found = draw.normal(x["logits"].shape[-1]) < 1.28
    if "tokens" in x:
        found[x["tokens"].flatten()] = True
    return found


def eight_ids(draw: Draw, x: Inputs) -> Tensor:
    num_classes = x["logits"].shape[-1] if "logits" in x else len(x["weight"])
    return draw.ids(num_classes, *x["tokens"].shape, 8)


def in_shards(function: Callable[..., Any], name: str, dimension: int) -> Callable[..., Any]:
    """name, dimension: the input of which V is a dimension, and which."""
    return lambda **x: function(**x, shards=VocabShards.even(x[name].shape[dimension]))


LOGITS = {"shape": (1024, V), "tiny": (5, 67)}
HEAD = {"shape": (256, V, 2048), "tiny": (8, 67, 6)}
DRAWN = {"shape": (64, V), "tiny": (3, 67)}
CAP = {"logit_settings": LogitSettings(softcap=30.0)}
IDS = {"add": {"ids": eight_ids}, "drop": ("tokens",)}
TOKENS, LINEAR, SAMPLING = workloads.TOKEN_LOGPROBS, workloads.LINEAR_LOGPROBS, workloads.SAMPLING
LOGIT_ROWS = (
    option("soft cap", TOKENS, plain.capped(workloads.plain_logprobs), partial(TOKENS.call, **CAP), **LOGITS),
    option("allowed ids", TOKENS, plain.allowed(workloads.plain_logprobs), add={"allowed": allowed}, **LOGITS),
    option("soft cap", LINEAR, linear(plain.capped(workloads.plain_logprobs)), partial(LINEAR.call, **CAP), **HEAD),
    option("8 ids a row", TOKENS, plain.candidates, workloads.public("candidates.candidate_logprobs"), **IDS, **LOGITS),
    option("8 ids a row", LINEAR, linear(plain.candidates), workloads.public("candidates.linear_candidate_logprobs"),
           **IDS, **HEAD),
    option("statistics", TOKENS, plain.statistics, workloads.public("statistics.token_statistics"), **LOGITS),
    option("statistics", LINEAR, linear(plain.statistics), workloads.public("statistics.linear_token_statistics"),
           **HEAD),
    option("a vocabulary in shards", TOKENS, workloads.plain_logprobs,
           in_shards(vocab_parallel.token_logprobs, "logits", -1), **LOGITS),
    option("a vocabulary in shards", LINEAR, workloads.plain_linear,
           in_shards(vocab_parallel.linear_token_logprobs, "weight", 0), **HEAD),
    option("soft cap", SAMPLING, plain.capped(plain.sampled), partial(SAMPLING.call, **CAP), **DRAWN),
    option("allowed ids", SAMPLING, plain.allowed(plain.sampled), add={"allowed": allowed}, **DRAWN),
    option("weights", workloads.LINEAR_NLL, plain.weighted_nll, add={"weights": noise("mask")}, **HEAD),
)  # fmt: skip


def ranked(draw: Draw, x: Inputs) -> Tensor:
    return draw.ids(4, *x["scores"].shape)


def tied(draw: Draw, x: Inputs) -> Tensor:
    neither = ~(x["preferred"] | x["preferred"].transpose(1, 2))
    return neither & ~torch.eye(neither.shape[1], dtype=torch.bool)


def pair_row(text: str, formula: Callable[..., Tensor], call: Callable[..., Any], **more: Any) -> Row:
    found = lambda **x: call(**x).loss_sum  # noqa: E731
    return option(text, workloads.RANKING, formula, found, shape=(4096, 9), tiny=(6, 5), **more)


PAIRS, TIES = ranking.pairwise_ranking_loss, ranking.tied_ranking_loss
RANKING_ROWS = (
    pair_row("margins", plain.comparisons(), PAIRS, add={"margins": noise("preferred")}),
    pair_row("weights", plain.comparisons(), PAIRS, add={"weights": noise("preferred")}),
    pair_row("label smoothing", plain.comparisons(0.1), partial(PAIRS, settings=RankingSettings(label_smoothing=0.1))),
    pair_row("ties by Rao and Kupper", plain.RAO_KUPPER, TIES, add={"tied": tied}),
    pair_row("ties by Davidson", plain.DAVIDSON, partial(TIES, settings=TieSettings(model="davidson", parameter=1.0)),
             add={"tied": tied}),
    pair_row("Plackett-Luce", plain.plackett_luce, ranking.plackett_luce_loss, add={"ranks": ranked},
             drop=("preferred",)),
)  # fmt: skip
