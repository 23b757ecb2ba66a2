"""`instructrl generate`: what a model answers, for people to read."""

import sys
from collections.abc import Iterator

from instructrl import distributed
from instructrl.commands.settings import GenerateCommand
from instructrl.data.chat import template_of
from instructrl.data.encoding import Encoder
from instructrl.data.readers import Records, at_row, check, read_prompts
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.evaluation.formatting import visible
from instructrl.models.backbone import check_context, context_of, hide_loading_bars
from instructrl.models.policy import Policy
from instructrl.models.spread import spread_for_use
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.types import Conversation, Message, Prompt


def main(config: GenerateCommand) -> int:
    """Carry out `instructrl generate`. Returns the exit code."""
    data = None if config.data is None else read_prompts(config.data)
    if data is not None:
        check(data)
    with distributed.joined(device=config.device):
        hide_loading_bars()
        encoder, policy = _load(config)
        # Of what is all there, each prompt is looked at before any is answered.
        given = [_asked(text, encoder) for text in config.prompts] if data is None else _readable(data, encoder)
        for text in given:
            encoder.prompt(text)
        for number, text in enumerate(given or _lines(encoder)):
            sampling = Sampling(
                seed=config.seed,
                temperature=config.temperature,
                truncation=config.sampling,
                max_response_tokens=encoder.limits.max_response_tokens,
            )
            asked = [text] * config.samples
            found = sample_texts(policy, encoder, asked, sampling, first_episode=number * config.samples)
            for response in found.texts:
                show(response)
    return 0


def _load(config: GenerateCommand) -> tuple[Encoder, Policy]:
    tokenizer = load_tokenizer(config.model)
    policy = Policy.load(config.model, tokenizer).eval()
    spread_for_use(policy, config.weights)
    positions = context_of(policy.lm)
    length = config.max_response_tokens or (256 if positions is None else min(256, positions // 2))
    limits = Limits(
        max_prompt_tokens=_MANY if positions is None else max(positions - length, 1), max_response_tokens=length
    )
    if positions is not None:
        check_context(policy.lm, limits.total, "max_response_tokens")
    return Encoder(tokenizer, limits, template_of(tokenizer, config.chat_template, config.chat_date)), policy


def _readable(records: Records[Prompt], encoder: Encoder) -> list[str]:
    """The prompts of a file. Raises DataError for one that the chat template does not take."""
    for place, record in enumerate(records):
        with at_row(records, place):
            encoder.check(record.text)
    return [record.text for record in records]


def _asked(text: str, encoder: Encoder) -> str:
    """What a person asks: with a chat template, a message of a user."""
    return text if encoder.chat is None else Conversation([Message("user", text)])


# Prompt tokens where a model has positions without end.
_MANY = 1 << 20


def _lines(encoder: Encoder) -> Iterator[str]:
    """Prompts from the standard input, asked for where a person types them. One that is too long ends nothing there."""
    typed = sys.stdin.isatty()
    while True:
        if typed:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        text = line.rstrip("\r\n")
        asked = _asked(text, encoder)
        if typed and not encoder.fits(asked):
            sys.stderr.write(f"found more than {encoder.limits.max_prompt_tokens} tokens, accepted are fewer\n")
        elif text:
            yield asked


def show(text: str) -> None:
    """On the terminal, where it does nothing but show: escapes become pictures of themselves."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(visible(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
