"""Models put through public test sets: which items fit a model, what it answers, and the `suites` entry of the results.

What a model answers is kept in portions: an evaluation that was stopped goes on.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from instructrl import distributed
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.evaluation.contenders import PORTION
from instructrl.evaluation.formatting import listing
from instructrl.evaluation.suites import truthfulqa
from instructrl.evaluation.suites.protocol import Answer, Item, Suite, Task, Written
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.evaluation.suites.table import SUITES
from instructrl.models.backbone import room_of
from instructrl.models.base import source_of
from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.rollout.options import Likelihoods, option_logprobs, option_tokens
from instructrl.rollout.settings import Truncation
from instructrl.runs.portions import Portions
from instructrl.runs.suite_judges import check_judges, judging
from instructrl.trainers.checkpoints import fingerprint
from instructrl.trainers.log import RunLog
from instructrl.types import Conversation, Message

# Tokens of a sequence for a model that names no end.
_ENDLESS = 1 << 20
_CONFIG = SuiteConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSuite:
    """A suite with its tasks, read and found good. notes: what a person should know of them, a line each. files: those
    that were read, by their names."""

    name: str
    suite: Suite
    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def own(cls, name: str, *tasks: Task, what: str = "") -> "ReadSuite":
        """One that is in no table. what: it measures, in a few words. Raises ValueError for a name that is no name of a
        file, which is what answers are kept in."""
        if not re.fullmatch(r"\w[\w .-]{0,99}", name):
            raise ValueError(
                f"name: found {name!r}, accepted are letters, digits, spaces, dots and dashes, 100 at most"
            )
        return cls(name=name, suite=Suite(title=name, what=what, files=(), tasks=lambda *_: [*tasks]), tasks=tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examinee:
    """A model that is asked. number: of it among all, for the files of its answers."""

    name: str
    number: int
    policy: Policy
    encoder: Encoder

    @classmethod
    def of(cls, name: str, number: int, policy: Policy, encoder: Encoder) -> "Examinee":
        """encoder: whose tokenizer and chat template are taken, and whose limits are not: what fits the model fits."""
        limits = Limits(max_prompt_tokens=_ENDLESS, max_response_tokens=_ENDLESS)
        return cls(name=name, number=number, policy=policy, encoder=Encoder(encoder.tokenizer, limits, encoder.chat))

    @property
    def known(self) -> tuple[Any, ...]:
        """What decides its answers to an item: weights, tokenizer, chat template and what ends an answer."""
        chat, tokenizer = self.encoder.chat, self.encoder.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
        rendered = "" if chat is None else f"{chat.today} {chat.text}"
        return self.policy, rendered, words, self.policy.ends(*self.encoder.ends)

    @property
    def room(self) -> int:
        """Tokens of a prompt with its answer that the model takes."""
        return room_of(self.policy.lm) or _ENDLESS


def read_suites(names: Sequence[str], config: SuiteConfig) -> list[ReadSuite]:
    """names: NAME, of the table of suites, in a folder of `config.data`, or NAME=FOLDER.

    Raises ValueError for an unknown name, a folder or file that is not there, and a file of another layout.
    """
    read = []
    for given in names:
        name, _, folder = given.partition("=")
        if name not in SUITES:
            raise ValueError(f"suites: found {name!r}, accepted are {', '.join(SUITES)}")
        if name in {suite.name for suite in read}:
            raise ValueError(f"suites: found {name!r} twice, accepted is each suite once")
        suite = SUITES[name]
        files = _files(name, suite, folder, config)
        found = _fewer(name, suite, suite.tasks(files, config), config)
        if name == truthfulqa.NAME:
            check_judges(files, config)
        read.append(replace(found, files=files))
    return read


def with_judges(
    suites: Sequence[ReadSuite], config: SuiteConfig, folder: Path, base: str, log: RunLog
) -> list[ReadSuite]:
    """The same suites; answers that are judged are measured by judges, which are trained here, or loaded.

    folder: of the evaluation; judges go to `folder/judges`. base: what they are trained from where the settings name
    nothing.
    """
    return [_judged(suite, config, folder, base, log) if suite.name == truthfulqa.NAME else suite for suite in suites]


def _judged(suite: ReadSuite, config: SuiteConfig, folder: Path, base: str, log: RunLog) -> ReadSuite:
    questions = [item.question for item in suite.tasks[0].items]
    measures, notes = judging(suite.files, config, folder / "judges", base, questions, log)
    tasks = suite.tasks
    if measures is not None:
        tasks = tuple(replace(task, measures=measures) if task.is_written else task for task in tasks)
    return replace(suite, tasks=tasks, notes=(*suite.notes, *notes))


def _files(name: str, suite: Suite, given: str, config: SuiteConfig) -> dict[str, Path]:
    """Those that are there, by their names."""
    if not given and config.data is None:
        raise ValueError(
            f"suite.data: found nothing, accepted is a folder with a folder {suite.folder or name} of {suite.title}, "
            f"or --suites {name}=FOLDER"
        )
    folder = Path(given) if given else Path(config.data or "") / (suite.folder or name)
    if not folder.is_dir():
        raise ValueError(f"{folder}: found no folder, accepted is one with {_listing(suite.files)} of {suite.title}")
    found = {}
    for file in suite.files:
        path = folder / file.removeprefix("?")
        if path.is_file():
            found[path.name] = path
        elif not file.startswith("?"):
            raise ValueError(f"{path}: found no file, accepted is that of {suite.title}")
    return found


def _listing(files: Sequence[str]) -> str:
    return ", ".join(file for file in files if not file.startswith("?")) or ", ".join(file[1:] for file in files)


def _fewer(name: str, suite: Suite, tasks: Sequence[Task], config: SuiteConfig) -> ReadSuite:
    """With as many items as are asked for, the same ones of all tasks that have as many."""
    notes, chosen = [], []
    for task in tasks:
        total = len(task.items)
        notes += [note for note in task.notes if note not in notes]
        if config.items is None or config.items >= total:
            chosen.append(task)
            continue
        places = sorted(random.Random(f"{config.seed} {name} {total}").sample(range(total), config.items))
        chosen.append(task.at(places))
        note = f"{config.items:,} of {total:,} items, drawn with seed {config.seed}"
        notes += [note] if note not in notes else []
    return ReadSuite(name=name, suite=suite, tasks=tuple(chosen), notes=tuple(notes))


def check_fits(examinee: Examinee, suites: Sequence[ReadSuite]) -> None:
    """Raise ValueError where a suite has no item that the model can be asked."""
    for suite in suites:
        if not any(_fitting(examinee, task)[0] for task in suite.tasks):
            raise ValueError(
                f"{suite.name}: found no item whose prompt and answer fit into the {examinee.room} positions of "
                f"{examinee.name}, accepted is a model with more"
            )


def ask(examinee: Examinee, suites: Sequence[ReadSuite], config: SuiteConfig, folder: Path, log: RunLog) -> list[dict]:
    """A model through all tasks of all suites: a mapping of model, rows and notes each. See `suite_results`."""
    return [found.measured() for found in answers(examinee, suites, config, folder, log)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a model answered to a suite. tasks: of those with items that fit the model, of these items alone, each with
    its answers in their order and the number of items that were left out. notes: what a person should know."""

    model: str
    suite: ReadSuite
    tasks: tuple[tuple[Task, list[Answer], int], ...]
    notes: list[str]

    def measured(self) -> dict[str, Any]:
        """A mapping of model, rows and notes, as `suite_results` takes it."""
        rows = [row for found in self.tasks for row in _rows(self.model, *found)]
        return {"model": self.model, "rows": rows, "notes": self.notes}


def answers(
    examinee: Examinee, suites: Sequence[ReadSuite], config: SuiteConfig, folder: Path, log: RunLog
) -> Iterator[Answered]:
    """What a model answers to all tasks of each suite, in their order; what was answered before is read."""
    known = fingerprint(*examinee.known)
    total = sum(len(suite.tasks) for suite in suites)
    with log.phase(f"suites: {examinee.name}", total, "answers") as bar:
        for suite in suites:
            fits = [_fitting(examinee, task) for task in suite.tasks]
            found, notes = [], _remarks(examinee, suite, fits)
            for note in notes:
                log.warn(f"{examinee.name}: {note}")
            for number, (task, (places, _)) in enumerate(zip(suite.tasks, fits, strict=True)):
                if places:
                    fitting = task.at(places)
                    given = (known, fitting.items, task.max_tokens, task.stop)
                    portions = Portions(folder, log, f"{examinee.number:02d}-{suite.name}-{number}", *given)
                    answered = _answers(examinee, fitting, config, portions, bar.advance)
                    found.append((fitting, answered, len(task.items) - len(places)))
                bar.advance(note=task.name)
            yield Answered(model=examinee.name, suite=suite, tasks=tuple(found), notes=notes)


def put_through(
    policy: Policy,
    encoder: Encoder,
    suites: Sequence[ReadSuite],
    folder: Path | str,
    config: SuiteConfig = _CONFIG,
    *,
    name: str = "model",
) -> list[dict[str, Any]]:
    """One policy, wherever it comes from, through suites: an entry of `suites` in `results.json` each.

    folder: for what is answered, so that the same call goes on. name: of the policy in the rows. Judges are trained, as
    the settings have it, from what the policy was loaded from. Raises ValueError where nothing of a suite fits the
    policy.
    """
    place, examinee = Path(folder), Examinee.of(name, 0, policy, encoder)
    check_fits(examinee, suites)
    distributed.from_main(lambda: place.mkdir(parents=True, exist_ok=True))
    log = RunLog(place)
    suites = with_judges(suites, config, place, source_of(policy.lm), log)
    return suite_results(suites, [ask(examinee, suites, config, place, log)])


def suite_results(suites: Sequence[ReadSuite], answered: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The `suites` entry of `results.json`. answered: what `ask` gave, a model each."""
    made = []
    for place, suite in enumerate(suites):
        found = [model[place] for model in answered]
        rows = [row for model in found for row in model["rows"]]
        told: dict[str, list[str]] = {}
        for model in found:
            for note in model["notes"]:
                told.setdefault(note, []).append(model["model"])
        notes = [*suite.notes, *(f"{listing(models)}: {note}" for note, models in told.items())]
        made.append(
            {"suite": suite.name, "title": suite.suite.title, "what": suite.suite.what, "notes": notes, "rows": rows}
        )
    return made


def _remarks(examinee: Examinee, suite: ReadSuite, fits: Sequence[tuple[list[int], int]]) -> list[str]:
    """What a person should know of how a suite meets a model: each thing once, with the tasks that it is true of."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, (places, num_alike) in zip(suite.tasks, fits, strict=True):
        total, num_left_out = f"of {len(task.items):,} items", len(task.items) - len(places)
        if num_left_out:
            why = f"are left out, they do not fit into {examinee.room:,} positions"
            found.setdefault((f"{num_left_out:,} {total}", why), []).append(task.name)
        if num_alike:
            why = "are the same tokens to the tokenizer"
            found.setdefault((f"options of {num_alike:,} {total}", why), []).append(task.name)
    return [
        f"{what} of {suite.name if len(names) == len(suite.tasks) else listing(names)} {why}"
        for (what, why), names in found.items()
    ]


def _rows(model: str, task: Task, answered: Sequence[Answer], num_left_out: int) -> list[dict[str, Any]]:
    about = {"model": model, "prompt": task.prompt, "shots": task.shots, "num_left_out": num_left_out}
    return [{**about, **asdict(measure)} for measure in task.measures(task.items, answered)]


def _form(examinee: Examinee, item: Item) -> Item:
    """As the model is asked: with a chat template, the context is what a user says, and an option what is answered."""
    if examinee.encoder.chat is None:
        return item
    said = Conversation([Message("user", item.context.strip())])
    return replace(item, context=said, options=tuple(option.strip() for option in item.options))


def _fitting(examinee: Examinee, task: Task) -> tuple[list[int], int]:
    """Places of the items that can be asked whole; of how many of these two options are the same to the tokenizer."""
    encoder, places, num_alike = examinee.encoder, [], 0
    for place, item in enumerate(task.items):
        asked = _form(examinee, item)
        options = [option_tokens(encoder, asked.context, text) for text in asked.options]
        needed = max(map(len, options), default=task.max_tokens)
        if len(encoder.prompt(asked.context)) + needed <= examinee.room:
            places.append(place)
            num_alike += len(set(map(tuple, options))) < len(set(asked.options))
    return places, num_alike


def _answers(
    examinee: Examinee,
    task: Task,
    config: SuiteConfig,
    portions: Portions,
    advance: Callable[..., None],
) -> list[Answer]:
    """In portions of which each is asked once."""
    ask_some = _write if task.is_written else _weigh
    answered: list[Answer] = []
    for start in range(0, len(task.items), PORTION):
        some = task.at(range(start, min(start + PORTION, len(task.items))))
        work = partial(ask_some, examinee, some, config)
        found = portions.once(f"{start:06d}", work)
        answered += [_answer(row) for row in found]
        advance(0, units=len(found))
    return answered


def _answer(row: Mapping[str, Any]) -> Answer:
    if "text" in row:
        return Written(**row)
    return Likelihoods(totals=tuple(row["totals"]), num_tokens=tuple(row["num_tokens"]))


def _write(examinee: Examinee, task: Task, config: SuiteConfig) -> list[dict[str, Any]]:
    """The likeliest answers, token by token."""
    contexts = [_form(examinee, item).context for item in task.items]
    longest = max(len(examinee.encoder.prompt(context)) for context in contexts) + task.max_tokens
    sampling = Sampling(
        seed=0,  # nothing is drawn
        temperature=0,
        truncation=Truncation(stop=task.stop),
        max_response_tokens=task.max_tokens,
        batch_size=max(min(config.batch_tokens // longest, PORTION), 1),
    )
    found = sample_texts(examinee.policy, examinee.encoder, contexts, sampling)
    return [
        asdict(Written(text=text, finished=finished))
        for text, finished in zip(found.texts, found.finished, strict=True)
    ]


def _weigh(examinee: Examinee, task: Task, config: SuiteConfig) -> list[dict[str, Any]]:
    """The likelihoods of the options."""
    asked = [_form(examinee, item) for item in task.items]
    contexts, options = [item.context for item in asked], [item.options for item in asked]
    found = option_logprobs(examinee.policy, examinee.encoder, contexts, options)
    return [asdict(row) for row in found]
