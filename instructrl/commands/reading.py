"""What each command line asks for, as settings. Nothing here needs torch: help and mistakes come at once.

Each function takes the words behind the command. It returns None where it has printed all that was asked for, and
raises ValueError for what it does not take.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.table import Table

from instructrl.commands import options
from instructrl.commands.settings import (
    CheckCommand,
    DoctorCommand,
    EvalCommand,
    GenerateCommand,
    JudgeCommand,
    MergeCommand,
    PPOCommand,
    ReportCommand,
    RewardModelCommand,
    RunCommand,
    SFTCommand,
    StudyCommand,
)
from instructrl.data.settings import DATE, PrepareConfig, Turns
from instructrl.integrations import HOSTS
from instructrl.runs.named import RUNS
from instructrl.runs.settings import MINIATURE, MiniatureConfig
from instructrl.runs.studies.points import StudyConfig
from instructrl.runs.studies.table import STUDIES

_RUN_USAGE = """usage: instructrl run NAME [--out FOLDER] [--dry-run] [--fresh] [--config FILE] [OPTIONS]
       instructrl run --list

All steps of a named run. `instructrl run NAME --help` lists its options, each of which can also be set in a YAML file.
--dry-run prints the plan (sizes and steps) and does nothing. --out is the folder for models, metrics, results.json and
report.html (default: runs/NAME-SEED). The same command continues a run that was stopped; --fresh starts over."""

_STUDY_USAGE = """usage: instructrl study NAME --run FOLDER [--out FOLDER] [--seeds N] [--dry-run] [--fresh]
       instructrl study --list

Varies settings of a run of the miniature. What the run has done is used again and nothing is written into its folder;
what changes is trained in a folder of the study, with figures in report.html and numbers in study.json. --dry-run
prints the points and the minutes that they take. The same command goes on with a study that was stopped."""

_DATA_USAGE = """usage: instructrl data prepare [OPTIONS]
       instructrl data check {demonstrations,comparisons,prompts,corpus} FILE [--model MODEL]

prepare cleans data as the paper does: it keeps one of the prompts with a long common prefix, limits the prompts of each
user, splits by user, removes personal data from the training split, and leaves out what is too long. It writes the
splits and a report of counts and lengths.

check reads every row of a file, names those that are wrong, and counts preferences between equal texts. With a model,
it renders every row with the model's chat template, and shows the first as the model reads it."""


def _step(config: type, name: str, description: str) -> Callable[[Sequence[str]], Any]:
    """A command whose options are the fields of one dataclass."""
    return lambda words: options.parse(config, words, program=f"instructrl {name}", description=description)


def _run(words: Sequence[str]) -> RunCommand | None:
    if not words or words[0] in ("-h", "--help"):
        print(f"{_RUN_USAGE}\n")
        Console().print(_list())
        return None
    if words[0] == "--list":
        Console().print(_list())
        return None
    name = words[0]
    if name not in RUNS:
        close = difflib.get_close_matches(name, RUNS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(RUNS)}"
        raise ValueError(f"run: found the name {name!r}, {hint}")
    named = RUNS[name]
    own = options.Parser(prog=f"instructrl run {name}", add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path)
    own.add_argument("--dry-run", action="store_true")
    own.add_argument("--fresh", action="store_true")
    chosen, rest = own.parse_known_args(list(words[1:]))
    config = options.parse(
        named.config,
        rest,
        program=f"instructrl run {name}",
        description=f"{named.description.capitalize()}. Also: --out FOLDER, --dry-run, --fresh.",
    )
    if not chosen.dry_run:
        named.check(config)
    folder = Path("runs") / f"{name}-{config.seed}" if chosen.out is None else chosen.out
    return RunCommand(name=name, named=named, config=config, folder=folder, dry_run=chosen.dry_run, fresh=chosen.fresh)


def _study(words: Sequence[str]) -> StudyCommand | None:
    if not words or words[0] in ("-h", "--help"):
        print(f"{_STUDY_USAGE}\n")
    if not words or words[0] in ("-h", "--help", "--list"):
        Console().print(_studies())
        return None
    name = words[0]
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(STUDIES)}"
        raise ValueError(f"study: found the name {name!r}, {hint}")
    study = STUDIES[name]
    parser = options.Parser(prog=f"instructrl study {name}", description=study.what, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of the miniature, which is only read")
    parser.add_argument("--out", type=Path, help=f"folder of the study (default: runs/study-{name})")
    parser.add_argument("--seeds", type=int, default=study.seeds, help=f"of each point (default: {study.seeds})")
    parser.add_argument("--dry-run", action="store_true", help="print the points and their minutes, and do nothing")
    parser.add_argument("--fresh", action="store_true", help="start over if there is such a study")
    chosen = parser.parse_args(list(words[1:]))
    base = _base_config(chosen.run)
    return StudyCommand(
        study=study,
        config=StudyConfig(study=name, seeds=chosen.seeds, base=base, device=base.device),
        run=chosen.run,
        folder=Path("runs") / f"study-{name}" if chosen.out is None else chosen.out,
        dry_run=chosen.dry_run,
        fresh=chosen.fresh,
    )


def _base_config(run: Path) -> MiniatureConfig:
    """The settings that a run of the miniature was begun with."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"run: found no config.yaml in {run}, accepted is the folder of a run of the miniature")
    try:
        return options.parse(MINIATURE, ["--config", str(path)], program="instructrl study", description="")
    except ValueError as error:
        raise ValueError(
            f"run: found another run than one of the miniature ({error}); accepted is one of `instructrl run miniature`"
        ) from None


def _studies() -> Table:
    table = Table("study", "what is varied", "in the paper", box=None, pad_edge=False)
    for name, study in STUDIES.items():
        table.add_row(name, study.what, study.paper)
    return table


def _list() -> Table:
    table = Table("run", "what it does", box=None, pad_edge=False)
    for name, run in RUNS.items():
        table.add_row(name, run.description)
    return table


def _data(words: Sequence[str]) -> PrepareConfig | CheckCommand | None:
    if not words or words[0] in ("-h", "--help"):
        print(_DATA_USAGE)
        return None
    if words[0] == "prepare":
        return options.parse(
            PrepareConfig,
            words[1:],
            program="instructrl data prepare",
            description="Clean and split data as the paper does.",
        )
    if words[0] == "check":
        parser = options.Parser(
            prog="instructrl data check", description="Read every row of a file, and name those that are wrong."
        )
        parser.add_argument("kind", choices=get_args(get_type_hints(CheckCommand)["kind"]))
        parser.add_argument("file")
        parser.add_argument(
            "--model", help="a transformers folder or name: render every row with its template, show the first"
        )
        parser.add_argument("--chat-template", default="auto", help="auto, none, or a Jinja file")
        parser.add_argument("--chat-date", default=DATE, help="today's date, for a template that asks for it")
        parser.add_argument("--turns", choices=get_args(Turns), default="all", help="which turns SFT learns")
        return CheckCommand(**vars(parser.parse_args(words[1:])))
    raise ValueError(f"data: found {words[0]!r}, accepted are prepare and check")


def _report(words: Sequence[str]) -> ReportCommand:
    parser = options.Parser(
        prog="instructrl report",
        description="Write report.html from the results and metrics of a run or of a single step.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run or a step, with results.json or metrics.jsonl")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="also write the win rates as an SVG picture")
    chosen = parser.parse_args(words)
    return ReportCommand(folder=chosen.folder, figure=chosen.figure)


def _doctor(words: Sequence[str]) -> DoctorCommand:
    parser = options.Parser(
        prog="instructrl doctor",
        description="Show versions; which backends each op can use on this machine, and why not the others; how each "
        "was built; and a self-test of each.",
    )
    parser.add_argument(
        "--host", choices=HOSTS, default="", help="only show what the adapter of this trainer would replace here"
    )
    return DoctorCommand(host=parser.parse_args(words).host)


READERS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "run": _run,
    "study": _study,
    "sft": _step(SFTCommand, "sft", "Step 1: supervised fine-tuning."),
    "rm": _step(RewardModelCommand, "rm", "Step 2: the reward model."),
    "ppo": _step(PPOCommand, "ppo", "Step 3: PPO against a reward model; PPO-ptx if ppo.ptx_coef is positive."),
    "eval": _step(EvalCommand, "eval", "Models side by side: win rates by a reward model, public test sets, or both."),
    "judge": _step(
        JudgeCommand,
        "judge",
        "Win rates, ratings and agreement of judges from AlpacaEval's files, and reward models on RewardBench's.",
    ),
    "generate": _step(
        GenerateCommand,
        "generate",
        "Sample responses of a model. Without --prompts and --data, each line of the standard input is a prompt.",
    ),
    "merge": _step(MergeCommand, "merge", "Merge an adapter and its base into whole weights."),
    "report": _report,
    "data": _data,
    "doctor": _doctor,
}
