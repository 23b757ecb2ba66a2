"""The judges of TruthfulQA's answers: trained once, measured on what they did not learn from, and kept.

FOLDER/judges.json                  what each judge learned from, and how good it is
FOLDER/models/truth, models/info    the reward models; state/ and metrics.jsonl are the journal's
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructrl import distributed, durable
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.evaluation.contenders import PORTION
from instructrl.evaluation.suites.protocol import Measures
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.evaluation.suites.truthfulqa import INFO_ROWS, TRUTH_ROWS, Judge, measured_by
from instructrl.evaluation.suites.truthfulqa_judge import (
    ASKED,
    VERDICTS,
    JudgedAnswer,
    JudgeQuality,
    VerdictJudge,
    is_held_out,
    judge_quality,
    read_judged_answers,
    spread_over_questions,
)
from instructrl.model_names import refuse_no_model
from instructrl.models.adapters import lora_of
from instructrl.models.backbone import context_of
from instructrl.models.conformance import border
from instructrl.models.policy import Policy
from instructrl.models.roles import network_of
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig
from instructrl.models.spread import spread_for_use
from instructrl.rollout.scoring import in_batches
from instructrl.runs.journal import Journal
from instructrl.runs.portions import Portions
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace, fit_reward_model, seed_for
from instructrl.trainers.checkpoints import fingerprint
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, RewardModelConfig

FACTS = "judges.json"
_GIVEN = "given.txt"
FILES = {"truth": TRUTH_ROWS, "info": INFO_ROWS}
NAMES = {"truth": "truth", "info": "information"}
_CHECKPOINTS = CheckpointConfig()

# Above so many weights, an adapter learns from a part of the rows: a CPU needs half an hour for it.
_LARGE = 50_000_000
_ADAPTER = AdapterConfig(rank=16)
_LARGE_ROWS, _LARGE_HELD_OUT = 3000, 1000
_ADAPTER_LR, _WHOLE_LR = 5e-4, 1e-3
_LONGEST = 1024  # tokens that a judge reads, where its base reads as many
_VERDICT_TOKENS = 8  # at most, with the end of text: of a tokenizer of bytes, too
_TIMED_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteJudges:
    """Those of both verdicts. facts: what `judges.json` has of each, by its name."""

    judges: Mapping[str, VerdictJudge]
    facts: Mapping[str, Mapping[str, Any]]

    def measures(self, folder: Path, log: RunLog) -> Measures:
        """What written answers are measured by. folder: where verdicts are kept, so that none is given twice."""
        truth, info = (_kept(judge, name, folder, log) for name, judge in self.judges.items())
        return measured_by(truth, info)

    def notes(self, questions: Sequence[str]) -> list[str]:
        """For people, beside the numbers: how far the judges can be trusted. questions: that models are asked."""
        return [_quality_note(name, self.facts[name], questions) for name in self.judges]


def check_judges(files: Mapping[str, Path], config: SuiteConfig) -> None:
    """Raise ValueError where `judging` would, before anything is asked or written. files: of TruthfulQA, by name."""
    if config.judge_base is not None:
        refuse_no_model(config.judge_base)
    if config.judges == "train":
        _read(files)
    elif config.judges != "none":
        _read_facts(Path(config.judges))


def judging(
    files: Mapping[str, Path], config: SuiteConfig, folder: Path, base: str, questions: Sequence[str], log: RunLog
) -> tuple[Measures | None, list[str]]:
    """What written answers are measured by, None without judges, and notes for people.

    files: of TruthfulQA, by name. folder: of judges that are trained, and of verdicts. base: that judges are trained
    from where the settings name none. questions: that models are asked.
    """
    if config.judges == "none":
        return None, []
    if config.judges != "train":
        found = load_judges(Path(config.judges), log)
        return found.measures(folder, log), found.notes(questions)
    if not _read(files):
        return None, [f"No judges: found no {' and '.join(FILES.values())} to train them on."]
    base = config.judge_base or base
    if not base:
        raise ValueError("judge_base: found nothing for a policy of no folder, accepted is a model's folder or name")
    found = train_judges(files, config, folder, base, log)
    if found is None:
        return None, [f"No judges: the tokenizer of {base} has no tokens of their own for yes and no."]
    return found.measures(folder, log), found.notes(questions)


def _kept(judge: VerdictJudge, name: str, folder: Path, log: RunLog) -> Judge:
    """The same judge, whose verdicts are kept in portions."""
    known = fingerprint(judge.reward_model)

    def judged(questions: Sequence[str], answers: Sequence[str]) -> list[float]:
        given = fingerprint(known, questions, answers)
        portions, found = Portions(folder, log, f"{name}-{given[:16]}", given), []
        for start in range(0, len(questions), PORTION):
            some = slice(start, start + PORTION)
            found += portions.once(f"{start:06d}", lambda some=some: judge(questions[some], answers[some]))
        return found

    return judged


def load_judges(folder: Path, log: RunLog) -> SuiteJudges:
    """Those that an earlier evaluation left. log: told of answers that they cannot read whole. Raises ValueError where
    they are not there."""
    facts, judges = _read_facts(folder), {}
    for name in FILES:
        model = folder / "models" / name
        reward_model = RewardModel.load(model).eval()
        judges[name] = _judge(reward_model, _encoder(str(model), network_of(reward_model)), name, log)
    return SuiteJudges(judges=judges, facts=facts)


def _read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = {name: {**facts[name], "quality": JudgeQuality(**facts[name]["quality"])} for name in FILES}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"judges: found no {FACTS} of judges in {folder}, accepted is train, none, or the folder `judges` that an "
            "earlier evaluation wrote"
        ) from None
    for name in FILES:
        if not (folder / "models" / name).is_dir():
            raise ValueError(f"judges: found no {folder / 'models' / name}, accepted is the folder as it was written")
    return facts


def _read(files: Mapping[str, Path]) -> dict[str, list[JudgedAnswer]]:
    """Rows by the name of a judge; nothing where a file is missing."""
    if not set(FILES.values()) <= set(files):
        return {}
    return {name: read_judged_answers(files[file], ASKED[name]) for name, file in FILES.items()}


def train_judges(
    files: Mapping[str, Path], config: SuiteConfig, folder: Path, base: str, log: RunLog
) -> SuiteJudges | None:
    """Judges trained from a base, or what of it is left to do after an earlier call.

    files: those of `FILES` by name. base: a model's folder or name. log: as `load_judges` has it. Returns None where
    the base has one token for both verdicts, as a vocabulary without them has. Raises ValueError for rows of another
    form, before anything is written.
    """
    rows = _read(files)
    policy = Policy.load(base, load_tokenizer(base))
    encoder = _encoder(base, policy.lm)
    if encoder.response(VERDICTS[0]) == encoder.response(VERDICTS[1]):
        return None
    adapter = _adapter_of(policy)
    lessons = {name: _lesson(rows[name], encoder, adapter, config.seed, name) for name in FILES}
    given = fingerprint(policy, [row.comparison for name in FILES for row in rows[name]], config.seed)
    distributed.from_main(lambda: _take_place(folder, given, log))
    work = _workspace(folder, encoder, adapter, config.seed)
    judges, facts = {}, {}
    for name, lesson in lessons.items():
        reward_model, quality = _trained(work, policy, lesson, name)
        judges[name] = _judge(reward_model, encoder, name, log)
        facts[name] = {
            "base": base,
            "sha256": hashlib.sha256(files[FILES[name]].read_bytes()).hexdigest(),
            "adapter_rank": adapter.rank,
            "num_answers": len(lesson.learned),
            "num_left_out": lesson.num_left_out,
            "quality": quality,
        }
    if distributed.is_main():
        kept = {name: {**found, "quality": asdict(found["quality"])} for name, found in facts.items()}
        durable.write_text(folder / FACTS, json.dumps(kept, indent=1) + "\n")
    return SuiteJudges(judges=judges, facts=facts)


def _take_place(folder: Path, given: str, log: RunLog) -> None:
    """Judges of another base, other rows or another seed give way. given: a digest of these."""
    mark = folder / _GIVEN
    if mark.is_file() and mark.read_text(encoding="utf-8") != given:
        log.say(f"{folder}: found judges of another base, other rows or another seed: they are trained anew")
        durable.remove(folder)
    durable.make_folder(folder)
    durable.write_text(mark, given)


def _judge(reward_model: RewardModel, encoder: Encoder, name: str, log: RunLog) -> VerdictJudge:
    spread_for_use(reward_model)
    return VerdictJudge(reward_model, encoder, ASKED[name], log.warn)


def _encoder(path: str, network: Any) -> Encoder:
    """Plain text, within what the network reads."""
    room = min(found for found in (context_of(network), border(network.config), _LONGEST) if found is not None)
    limits = Limits(max_prompt_tokens=room - _VERDICT_TOKENS, max_response_tokens=_VERDICT_TOKENS)
    return Encoder(load_tokenizer(path), limits)


def _adapter_of(policy: Policy) -> AdapterConfig:
    """What learns: of a policy with an adapter this one, of others all weights or, of many, a new adapter."""
    lora = lora_of(network_of(policy))
    if lora is not None:
        return AdapterConfig(rank=lora.r, alpha=int(lora.lora_alpha))
    return _ADAPTER if sum(parameter.numel() for parameter in policy.parameters()) > _LARGE else AdapterConfig()


def _workspace(folder: Path, encoder: Encoder, adapter: AdapterConfig, seed: int) -> Workspace:
    lr = _WHOLE_LR if adapter.rank is None else _ADAPTER_LR
    settings = RewardModelConfig(adam=AdamConfig(lr=lr, max_grad_norm=1.0), batch_size=16, microbatch=8)
    log = RunLog(folder, continued=True)
    return Workspace(
        folder=folder,
        log=log,
        encoder=encoder,
        recipe=Recipe(limits=encoder.limits, adapter=adapter, reward_model=settings),
        seed=seed,
        config={},
        journal=Journal(folder, log, _CHECKPOINTS),
    )


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What a judge learns from, and what it is measured on. num_left_out: rows that its base cannot read whole."""

    learned: list[JudgedAnswer]
    held_out: list[JudgedAnswer]
    num_left_out: int


def _lesson(rows: Sequence[JudgedAnswer], encoder: Encoder, adapter: AdapterConfig, seed: int, name: str) -> _Lesson:
    fitting = [row for row in rows if encoder.fits(row.comparison.prompt)]
    learned, held_out = ([row for row in fitting if is_held_out(row.question) == out] for out in (False, True))
    if not learned or not held_out:
        raise ValueError(
            f"{FILES[name]}: found {len(learned)} answers to learn from and {len(held_out)} held out that fit into "
            f"{encoder.limits.max_prompt_tokens} tokens, accepted is at least one of each"
        )
    if adapter.rank is not None:
        drawn = seed_for(seed, f"{name} rows")
        learned = spread_over_questions(learned, _LARGE_ROWS, drawn)
        held_out = spread_over_questions(held_out, _LARGE_HELD_OUT, drawn)
    return _Lesson(learned, held_out, len(rows) - len(fitting))


def _trained(work: Workspace, policy: Policy, lesson: _Lesson, name: str) -> tuple[RewardModel, JudgeQuality]:
    learned, held_out = lesson.learned, lesson.held_out
    if not work.model(name).is_dir():
        minutes = _estimated_minutes(policy, work.encoder, work.recipe.adapter, lesson)
        takes = f"about {minutes:.0f} minutes" if minutes >= 1 else "less than a minute"
        counts = f"{len(learned):,} answers and is measured on {len(held_out):,}"
        work.log.say(f"the judge of {NAMES[name]} learns from {counts}: {takes}")
    reward_model = fit_reward_model(work, policy, [row.comparison for row in learned], None, phase=name)

    def measure(*_: object) -> dict[str, Any]:
        judge = _judge(reward_model, work.encoder, name, work.log)
        judged = judge([row.question for row in held_out], [row.answer for row in held_out])
        return asdict(judge_quality(held_out, judged))

    given = {"judge": reward_model, "held-out answers": [row.comparison for row in held_out]}
    return reward_model, JudgeQuality(**work.journal.once(f"{name}_held_out", measure, given))


def _estimated_minutes(policy: Policy, encoder: Encoder, adapter: AdapterConfig, lesson: _Lesson) -> float:
    """Of training and measuring, from a few rows. A backward pass costs as much as two forward passes, for an adapter
    alone as much as one."""
    some = lesson.learned[:_TIMED_ROWS]
    sequences = encoder.pairs([row.comparison.prompt for row in some], [VERDICTS[0]] * len(some)).to(policy.device)
    in_batches(policy, sequences)  # the first pass is slower
    start = time.perf_counter()
    in_batches(policy, sequences).cpu()
    seconds = time.perf_counter() - start
    for_training = 3 if adapter.rank is None else 2
    passes = (for_training * len(lesson.learned) + len(lesson.held_out)) / len(some)
    return passes * seconds / 60


def _quality_note(name: str, facts: Mapping[str, Any], questions: Sequence[str]) -> str:
    quality: JudgeQuality = facts["quality"]
    known = sum(not is_held_out(question) for question in questions)
    return (
        f"The judge of {NAMES[name]} is right on {quality.accuracy:.1%} ({quality.low:.1%} to {quality.high:.1%}) of "
        f"{quality.num_answers:,} answers to {quality.num_questions:,} questions that it did not learn from; the "
        f"commoner verdict alone would be right on {quality.commoner:.1%}. It learned from {facts['num_answers']:,} "
        f"answers; {known:,} of the {len(questions):,} questions asked here are among theirs."
    )
