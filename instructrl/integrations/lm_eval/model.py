"""A policy as a model of lm-eval: its log-probabilities and its decoding are those of all commands.

The tokens are those that lm-eval's own class for transformers models (`HFLM`) reads, with two exceptions. What a task
writes never becomes a control token. And messages are rendered by the encoder's chat template, which also says how what
the assistant answers is written: where a template puts a space or an empty thought before an answer, that is read too.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from instructrl import distributed, progress
from instructrl.data.chat_rendering import ChatTemplateError
from instructrl.data.encoding import Encoder, pad_left, pad_right
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import encode_text
from instructrl.data.tokenizers import end_of_text as own_end_of_text
from instructrl.integrations.lm_eval import package
from instructrl.models.backbone import hidden_states, room_of
from instructrl.models.passes import converted_once
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.ops.precision import widest
from instructrl.ops.statistics import linear_token_statistics
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.settings import Truncation
from instructrl.rollout.truncation import cut_at
from instructrl.types import Conversation, Message, Rollout, Sequences

# What lm-eval takes where a model names no end, or a task no number of tokens.
_MANY_POSITIONS, _MANY_TOKENS = 2048, 256
# Sequences in one pass; those of a task are often as long as the model reads.
_BATCH = 32
# What a task may say of how answers are drawn, and the names that it has for their length.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", "top_p", "top_k", "min_p", *_LENGTHS}

LM: Any = package.module("lm_eval.api.model").LM


class PolicyLM(LM):
    """For `lm_eval.evaluate` and `lm_eval.simple_evaluate`.

    encoder: its limits are not in force, those of the network are: what is longer loses its beginning, as lm-eval has
    it, and is counted in `cut`. seed: of tasks that sample. In a job, each process is asked everything, reads its part,
    and has all answers.
    """

    def __init__(self, policy: Policy, encoder: Encoder, seed: int = 0) -> None:
        super().__init__()
        self._policy, self._seed = policy, seed
        self._positions = room_of(policy.lm)
        self._encoder = RequestEncoder(encoder)
        self.cut: Counter[str] = Counter()
        self.moved_system_messages = 0

    @property
    def device(self) -> torch.device:
        return self._policy.device

    @property
    def tokenizer_name(self) -> str:
        return str(self._encoder.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that is in force, "" for none."""
        return "" if self._encoder.chat is None else self._encoder.chat.text

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> Conversation:
        """Messages as a prompt. add_generation_prompt: False where the last message is the beginning of the answer.

        A template that takes no system message has it before what the user says. Raises ChatTemplateError for messages
        that it does not take then either, and without a template.
        """
        if self._encoder.chat is None:
            raise ChatTemplateError("apply_chat_template: found no chat template in force, accepted is False")
        messages = [Message(row["role"], row["content"]) for row in chat_history]
        asked = messages if add_generation_prompt else messages[:-1]
        try:
            self._encoder.check(Conversation(asked))
        except ChatTemplateError:
            if len(asked) < 2 or asked[0].role != "system":
                raise
            first = Message(asked[1].role, f"{asked[0].content}\n\n{asked[1].content}")
            asked = [first, *asked[2:]]
            self._encoder.check(Conversation(asked))
            self.moved_system_messages += 1
        return Conversation(asked if add_generation_prompt else [*asked, messages[-1]])

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: the log-probability in nats, and whether every token is the
        likeliest."""
        rows = [self._encoder.behind(*request.args) for request in requests]
        return self._weighed(rows, [request.task_name for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text in nats. A long one is read in windows that begin anew, each token once."""
        length = self._positions or _MANY_POSITIONS
        windows = [self._encoder.windows(request.args[0], length) for request in requests]
        names = [request.task_name for request, own in zip(requests, windows, strict=True) for _ in own]
        found = iter(self._weighed([row for own in windows for row in own], names))
        return [sum(next(found)[0] for _ in own) for own in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first of the texts at which the task stops it."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        answers = [""] * len(requests)
        for number, places in enumerate(groups.values()):
            sampling = sampling_of(requests[places[0]].args[1], self._positions, self._seed)
            room = None if self._positions is None else self._positions - sampling.max_response_tokens
            encoder = RequestEncoder(self._encoder, room)
            contexts = [requests[place].args[0] for place in places]
            for place, text in zip(places, contexts, strict=True):
                self.cut[requests[place].task_name] += not encoder.fits(text)
            # Keys of other groups' random numbers are others.
            first = number * len(requests)
            rollout = sample_rollout(self._policy, encoder, contexts, sampling, first_episode=first)
            for place, text in zip(places, self._texts(rollout, sampling.truncation.stop), strict=True):
                answers[place] = text
        return answers

    def _texts(self, rollout: Rollout, stop: Sequence[str]) -> list[str]:
        """As lm-eval has them: without special tokens, wherever they stand."""
        ends = set(self._policy.ends(*self._encoder.ends))
        rows = zip(rollout.sequences.response.tolist(), rollout.sequences.response_mask.tolist(), strict=True)
        said = ([token for token, counted in zip(*row, strict=True) if counted and token not in ends] for row in rows)
        decode = self._encoder.tokenizer.decode
        return [cut_at(str(decode(ids, skip_special_tokens=True)), stop) for ids in said]

    @torch.no_grad()
    @converted_once()
    def _weighed(self, rows: Sequence[tuple[list[int], list[int]]], tasks: Sequence[str]) -> list[tuple[float, bool]]:
        # The last token is read by nobody, so that a sequence may have one more than there are positions.
        room = None if self._positions is None else self._positions + 1
        kept = []
        for (start, answer), task in zip(rows, tasks, strict=True):
            # The whole of an answer, and at least a token before it.
            over = 0 if room is None else len(start) + len(answer) - room
            if over >= len(start):
                raise ValueError(
                    f"{task}: found an answer of {len(answer)} tokens, accepted are up to the {self._positions} "
                    "positions of the model"
                )
            self.cut[task] += over > 0
            kept.append((start[max(over, 0) :], answer))
        asked = [place for place, (_, answer) in enumerate(kept) if answer]
        order = sorted(asked, key=lambda place: len(kept[place][0]) + len(kept[place][1]))
        own, found = distributed.own_rows(order), []
        with unsharded(self._policy) as network, progress.wait("likelihoods", len(own)) as advance:
            for first in range(0, len(own) or min(len(order), 1), _BATCH):
                places = own[first : first + _BATCH] or order[:1]  # nobody's row, for the shape of nothing
                found.append(_likelihoods(network, [kept[place] for place in places], self._encoder.end_of_text))
                advance(len(places))
        weighed = [(0.0, True)] * len(kept)  # of an answer without tokens
        if order:
            everything = distributed.gather(torch.cat(found)[: len(own)], len(order)).tolist()
            for place, (total, largest) in zip(order, everything, strict=True):
                weighed[place] = (total, largest > 0)
        return weighed


def sampling_of(given: Mapping[str, Any], positions: int | None, seed: int) -> Sampling:
    """How answers are drawn, from what a task says of it (`generation_kwargs`). Raises ValueError for what is not known
    here."""
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise ValueError(f"generation_kwargs: found {', '.join(unknown)}, accepted are {', '.join(sorted(_KNOWN))}")
    until = given.get("until") or ()
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample") is not False else 0.0
    asked = next((int(given[name]) for name in _LENGTHS if given.get(name) is not None), None)
    length = min(_MANY_TOKENS, (positions or 2 * _MANY_TOKENS) // 2) if asked is None else asked
    if length < 1 or (positions is not None and length >= positions):
        raise ValueError(
            f"generation_kwargs: max_gen_toks: found {length}, accepted are 1 to {(positions or 0) - 1} for a model of "
            f"{positions} positions"
        )
    return Sampling(
        seed=seed,
        temperature=temperature,
        truncation=Truncation(
            top_k=int(given.get("top_k") or 0) if temperature else 0,
            top_p=float(given.get("top_p") or 1.0) if temperature else 1.0,
            min_p=float(given.get("min_p") or 0.0) if temperature else 0.0,
            stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        ),
        max_response_tokens=length,
        batch_size=_BATCH,
    )


def check_drawing(policy: Policy, tasks: Mapping[str, Any]) -> None:
    """Raise ValueError where a task draws answers in a way that is not known here, or longer ones than the network has
    positions. tasks: lm-eval's own, by their names."""
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            try:
                sampling_of(task.get_config("generation_kwargs") or {}, room_of(policy.lm), 0)
            except ValueError as error:
                raise ValueError(f"lm_eval: {name}: {error}") from None


class RequestEncoder(Encoder):
    """Reads contexts as lm-eval does. room: for the tokens of a prompt, of which a longer one has the last; None for
    any number."""

    def __init__(self, encoder: Encoder, room: int | None = None) -> None:
        limits = Limits(max_prompt_tokens=room or sys.maxsize, max_response_tokens=sys.maxsize)
        super().__init__(encoder.tokenizer, limits, encoder.chat)
        begin = encoder.tokenizer.bos_token_id
        # Before what has nothing before it.
        self._prefix: int = begin if isinstance(begin, int) else own_end_of_text(encoder.tokenizer)

    def prompt(self, text: str) -> list[int]:
        return self._prompt_ids(text)[-self.limits.max_prompt_tokens :]

    def behind(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of what stands behind it. White space at the end of the context is of what follows."""
        if isinstance(context, Conversation):
            whole, start = self._conversation(context, continuation), self._conversation(context, "")
            border = _without_white_space(self, start)
        elif context:
            whole = self._text(context + continuation)
            border = len(self._text(context.rstrip()))
        else:
            answer = encode_text(self.tokenizer, continuation)
            whole = answer if answer[:1] == [self._prefix] else [self._prefix, *answer]
            border = 1
        return whole[:border] or [self._prefix], whole[border:]

    def windows(self, text: str, length: int) -> list[tuple[list[int], list[int]]]:
        """Ids of a text, each once as what is to be predicted, behind as many as a pass of `length` tokens has room
        for."""
        ids = [self._prefix, *self._text(text)]
        found = []
        for start in range(1, len(ids), length):
            end = min(start + length, len(ids))
            first = max(end - length - 1, 0)
            found.append((ids[first:start], ids[start:end]))
        return found

    def _text(self, text: str) -> list[int]:
        return [*self.begin_of_text, *encode_text(self.tokenizer, text)]

    def _prompt_ids(self, text: str) -> list[int]:
        return self._conversation(text, "") if isinstance(text, Conversation) else self._text(text) or [self._prefix]

    def _conversation(self, asked: Conversation, continuation: str) -> list[int]:
        """A message of the assistant at the end is the beginning of what it says."""
        assert self.chat is not None  # who makes conversations here has one
        begun = ""
        if asked.messages[-1].role == "assistant":
            begun = asked.messages[-1].content
            asked = Conversation(asked.messages[:-1])
        start = self.chat.prompt(asked)
        if not begun + continuation:
            return start
        return [*start, *self.chat.response(asked, start, begun + continuation, finished=False)]


def _without_white_space(encoder: Encoder, ids: Sequence[int]) -> int:
    """How many ids there are without those of white space at the end."""
    count = len(ids)
    while count > 1 and str(encoder.tokenizer.decode([ids[count - 1]])).isspace():
        count -= 1
    return count


def _likelihoods(network: Policy, rows: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int) -> Tensor:
    """[B, 2]: log-probability of each answer, and 1 where each of its tokens is the likeliest. rows: starts and
    answers, at least one token each."""
    device = network.device
    # Without the last token, from which nothing is predicted: what is read ends one before what is answered.
    prompt, prompt_mask = pad_left([start for start, _ in rows], padding)
    read, read_mask = pad_right([answer[:-1] for _, answer in rows], padding)
    answer, mask = (x.to(device) for x in pad_right([answer for _, answer in rows], padding))
    given = Sequences(prompt=prompt, prompt_mask=prompt_mask, response=read, response_mask=read_mask).to(device)
    hidden = hidden_states(network.lm, given, network.paths)[:, prompt.shape[1] - 1 :]
    weight, bias = network.output_embedding()
    found = linear_token_statistics(
        hidden.to(weight.dtype), weight, answer, bias=bias, mask=mask, logit_settings=network.logit_settings
    )
    totals = found.logprobs.sum(dim=1, dtype=widest(device))
    return torch.stack([totals, (found.is_largest | ~mask).all(dim=1).to(totals.dtype)], dim=1)
