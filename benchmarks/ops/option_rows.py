"""What options.py measures: option -> the call that has it, the formula as it is written without us, and inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.core import workloads
from benchmarks.core.workloads import BOTH, COMPILE, EAGER, FORWARD, Draw, Inputs, Provider, Workload, running
from benchmarks.ops import option_formulas as plain
from benchmarks.ops.floor_rows import OURS, WITHOUT, V
from instructrl.ops import candidates, likelihood, logprobs, ranking, sampling, vocab_parallel
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.ranking_settings import RankingSettings, TieSettings
from instructrl.ops.vocab_parallel import VocabShards


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of an op.

    work: the op without it. call, plain: with it, from the same keyword arguments; compiled: what torch.compile gets
    where that is not `plain`. add: from a draw and the inputs to more of them; drop: names that are not passed. shape:
    of a measurement; tiny: of a test. compared: whether the results must agree. alone: it cannot be left out.
    """

    option: str
    work: Workload
    call: Callable[..., Any]
    plain: Callable[..., Any]
    shape: tuple[int, ...]
    tiny: tuple[int, ...]
    compiled: Callable[..., Any] | None = None
    add: Callable[[Draw, Inputs], Inputs] = lambda draw, x: {}
    drop: tuple[str, ...] = ()
    part: str = BOTH
    counts: Callable[..., Tensor] = workloads.whole
    compared: bool = True
    alone: bool = False

    @property
    def op(self) -> str:
        return f"{self.work.op.split('.')[1]} {'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        return f"{self.op}, {self.option}"

    def inputs(self, tiny: bool = False) -> Inputs:
        draw = Draw(generator=torch.Generator().manual_seed(0), counts=self.counts)
        made = self.work.inputs(draw, *(self.tiny if tiny else self.shape), gradients=self.part != FORWARD)
        return made | self.add(draw, made)

    def providers(self) -> dict[str, Provider]:
        leaves = tuple(name for name in self.work.leaves if name not in self.drop)

        def provider(call: Callable[..., Any], backend: str = "reference") -> Provider:
            run = running(call, leaves, self.part)
            return Provider(run=lambda x: run({key: x[key] for key in x if key not in self.drop}), backend=backend)

        found = {OURS: provider(self.call, "native"), EAGER: provider(self.plain)}
        found[COMPILE] = provider(torch.compile(self.compiled or self.plain))
        if not self.alone:
            run = self.work.run(self.part)
            # What the op itself is given, before the option added to it.
            names = set(self.work.make(Draw(generator=torch.Generator()), *self.tiny))
            found[WITHOUT] = Provider(run=lambda x: run({key: x[key] for key in x if key in names}), backend="native")
        return found


def noise(name: str, like: str) -> Callable[[Draw, Inputs], Inputs]:
    """Non-negative numbers of the shape of another input."""
    return lambda draw, x: {name: draw.normal(*x[like].shape).abs()}


def allowed(draw: Draw, x: Inputs) -> Inputs:
    """Nine ids of ten, those of the inputs among them."""
    found = draw.normal(x["logits"].shape[-1]) < 1.28
    if "tokens" in x:
        found[x["tokens"].flatten()] = True
    return {"allowed": found}


LOGITS = {"shape": (1024, V), "tiny": (5, 67)}
HEAD = {"shape": (256, V, 2048), "tiny": (8, 67, 6)}
CAP = LogitSettings(softcap=30.0)
# Beside the op on one id a row.
EIGHT = replace(workloads.TOKEN_LOGPROBS, op="candidates.candidate_logprobs")
LINEAR_EIGHT = replace(workloads.LINEAR_LOGPROBS, op="candidates.linear_candidate_logprobs")


def eight_ids(draw: Draw, x: Inputs) -> Inputs:
    num_classes = x["logits"].shape[-1] if "logits" in x else len(x["weight"])
    return {"ids": draw.ids(num_classes, *x["tokens"].shape, 8)}


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone, for the options that ask for one: what they cost without a network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def in_shards(function: Callable[..., Any], vocabulary: str) -> Callable[..., Any]:
    """vocabulary: the input of which V is a dimension, and which."""
    name, dimension = vocabulary.split(":")
    return lambda **x: function(**x, shards=VocabShards.even(x[name].shape[int(dimension)]))


LOGIT_ROWS = (
    Option(option="soft cap", work=workloads.TOKEN_LOGPROBS, plain=plain.capped_logprobs, **LOGITS,
           call=partial(logprobs.token_logprobs, logit_settings=CAP)),
    Option(option="allowed ids", work=workloads.TOKEN_LOGPROBS, plain=plain.allowed_logprobs, add=allowed, **LOGITS,
           call=logprobs.token_logprobs),
    Option(option="soft cap", work=workloads.LINEAR_LOGPROBS, plain=plain.capped_linear, **HEAD,
           call=partial(logprobs.linear_token_logprobs, logit_settings=CAP)),
    Option(option="8 ids a row", work=EIGHT, plain=plain.candidates, call=candidates.candidate_logprobs, add=eight_ids,
           drop=("tokens",), **LOGITS),
    Option(option="8 ids a row", work=LINEAR_EIGHT, plain=plain.linear_candidates, add=eight_ids, drop=("tokens",),
           call=candidates.linear_candidate_logprobs, **HEAD),
    Option(option="a vocabulary in shards", work=workloads.TOKEN_LOGPROBS, plain=workloads.plain_logprobs, **LOGITS,
           call=in_shards(vocab_parallel.token_logprobs, "logits:-1")),
    Option(option="a vocabulary in shards", work=workloads.LINEAR_LOGPROBS, plain=workloads.plain_linear, **HEAD,
           call=in_shards(vocab_parallel.linear_token_logprobs, "weight:0")),
    Option(option="soft cap", work=workloads.SAMPLING, plain=plain.capped_sampled, compared=False, shape=(64, V),
           tiny=(3, 67), call=partial(sampling.sample_tokens, logit_settings=CAP)),
    Option(option="allowed ids", work=workloads.SAMPLING, plain=plain.allowed_sampled, compared=False, add=allowed,
           shape=(64, V), tiny=(3, 67), call=sampling.sample_tokens),
    Option(option="weights", work=workloads.LINEAR_NLL, plain=plain.weighted_nll, add=noise("weights", "mask"), **HEAD,
           call=likelihood.linear_nll_loss),
)  # fmt: skip

PAIRS = {"shape": (4096, 9), "tiny": (6, 5)}


def pair_row(option: str, formula: Callable[..., Tensor], call: Callable[..., Any], **more: Any) -> Option:
    kept = {"work": workloads.RANKING, **PAIRS}
    return Option(option=option, call=lambda **x: call(**x).loss_sum, plain=formula, **{**kept, **more})


def ranked(draw: Draw, x: Inputs) -> Inputs:
    return {"ranks": draw.ids(4, *x["scores"].shape)}


def tied(draw: Draw, x: Inputs) -> Inputs:
    neither = ~(x["preferred"] | x["preferred"].transpose(1, 2))
    return {"tied": neither & ~torch.eye(neither.shape[1], dtype=torch.bool)}


RANKING_ROWS = (
    pair_row("margins", plain.comparisons(), ranking.pairwise_ranking_loss, add=noise("margins", "preferred")),
    pair_row("weights", plain.comparisons(), ranking.pairwise_ranking_loss, add=noise("weights", "preferred")),
    pair_row("label smoothing", plain.comparisons(0.1),
             partial(ranking.pairwise_ranking_loss, settings=RankingSettings(label_smoothing=0.1))),
    pair_row("ties by Rao and Kupper", plain.RAO_KUPPER, ranking.tied_ranking_loss, add=tied),
    pair_row("ties by Davidson", plain.DAVIDSON, add=tied,
             call=partial(ranking.tied_ranking_loss, settings=TieSettings(model="davidson", parameter=1.0))),
    pair_row("Plackett-Luce", plain.plackett_luce, ranking.plackett_luce_loss, add=ranked, drop=("preferred",)),
)  # fmt: skip
