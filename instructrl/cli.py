"""`instructrl`: one command for each step of the paper, and `run` for all of them."""

import difflib
import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from types import TracebackType
from typing import Any

from instructrl import __version__, interruption, threads
from instructrl.tracking.masking import masked

# Command -> (what it does, where it is carried out). That is imported once the options are known to be good.
COMMANDS = {
    "run": ("all steps of a named run, from data to report", "instructrl.commands.run"),
    "study": ("vary a finished run as appendix E of the paper does", "instructrl.commands.study"),
    "sft": ("step 1: fine-tune a language model on demonstrations", "instructrl.commands.sft"),
    "rm": ("step 2: train a reward model on comparisons", "instructrl.commands.rm"),
    "ppo": ("step 3: PPO or PPO-ptx against a reward model", "instructrl.commands.ppo"),
    "eval": ("compare models: by a reward model's verdicts, and on public test sets", "instructrl.commands.eval"),
    "judge": ("win rates, ratings and agreement of judges, from files of verdicts", "instructrl.commands.judge"),
    "generate": (
        "let a model answer prompts: given as options, in a file, or typed",
        "instructrl.commands.generate",
    ),
    "merge": ("merge an adapter and its base into whole weights", "instructrl.commands.merge"),
    "report": ("write report.html for a run or a single step", "instructrl.commands.report"),
    "data": (
        "clean and split data as the paper does, or check a file",
        "instructrl.commands.data",
    ),
    "doctor": ("show which kernels can be used on this machine, and why not the others", "instructrl.commands.doctor"),
}


# Commands that run networks: on a GPU where there is one, and in several processes where torchrun starts them.
IN_JOBS = ("run", "study", "sft", "rm", "ppo", "eval")
_LOSS = "another process of the job is gone; the same command goes on from the last checkpoint"
# Of them those that save what they do: a signal lets their step finish. The others it simply ends.
CONTINUED = ("run", "study", "sft", "rm", "ppo", "eval")
_RESUMED = "the same command goes on from here"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SAVED = "the same command goes on from what was saved last"


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line. Returns the exit code: 0, 2 for unusable input, 130 or 143 after a signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"instructrl {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        return _fail(f"found the command {arguments[0]!r}{_suggestion(arguments[0])}")
    if arguments[0] not in IN_JOBS and _num_processes() != "1":
        first = os.environ.get("RANK", "0") == "0"
        return _fail(f"{arguments[0]}: found {_num_processes()} processes, accepted is one") if first else 2
    threads.wait_briefly()
    try:
        return _carry_out(arguments[0], arguments[1:])
    except interruption.Interrupted as signal:
        _say(f"instructrl: stopped by {signal}{f' at once; {_SAVED}' if signal.at_once else f'; {_RESUMED}'}")
        return signal.exit_code
    except KeyboardInterrupt:
        after = _SAVED if arguments[0] in CONTINUED else "nothing was saved, the same command starts over"
        _say(f"instructrl: stopped; {after}")
        return 130
    except BrokenPipeError:  # somebody reads our output with `head`
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        if debug:
            sys.excepthook = _show_masked
            raise
        return _fail(f"{_described(error)} (--debug shows where)")


def _carry_out(name: str, words: Sequence[str]) -> int:
    """The options are read first: for a mistake in them, nobody should wait until torch is imported. In a job all
    processes find the same mistake, and have to have met for one of them to tell it."""
    if _num_processes() != "1":
        return _in_job(name, lambda: _settings(name, words))
    settings = _settings(name, words)
    if settings is None:
        return 0
    with _waits_shown():
        return _in_job(name, lambda: settings) if name in IN_JOBS else _with_signals(name, settings)


def _waits_shown() -> AbstractContextManager[Any]:
    from rich.console import Console

    from instructrl import progress

    return progress.shown_on(Console(stderr=True))


def _settings(name: str, words: Sequence[str]) -> Any:
    from instructrl.commands.given_models import check_given_models  # not for `instructrl --help`
    from instructrl.commands.reading import READERS
    from instructrl.commands.unused import check_used
    from instructrl.tracking.settings import check_tracker

    settings = READERS[name](words)
    check_tracker(getattr(getattr(settings, "config", settings), "track", "none"))
    check_used(settings)
    check_given_models(settings)
    return settings


def _module(name: str) -> Any:
    from instructrl import progress

    with progress.wait("importing torch and transformers"):
        # A variable of the environment may be wrong, which shows when backends are loaded.
        return importlib.import_module(COMMANDS[name][1])


def _in_job(name: str, settings: Callable[[], Any]) -> int:
    """In the job of processes that torchrun has made, of which the first one has the output."""
    from instructrl import progress

    with progress.wait("importing torch"):
        from instructrl import distributed

    with distributed.joined(lambda: _say(f"instructrl: error: {_LOSS}")), threads.by_work():
        if distributed.is_main():
            with _waits_shown() if distributed.size_of_job() > 1 else nullcontext():
                return _with_signals(name, settings())
        warnings.simplefilter("ignore")
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            return _with_signals(name, settings())


def _with_signals(name: str, settings: Any) -> int:
    if settings is None:
        return 0
    module = _module(name)
    _use_device(settings)
    with interruption.heeded() if name in CONTINUED else nullcontext():
        return module.main(settings)


def _use_device(settings: Any) -> None:
    """What the command was asked for; those that run no network ask for nothing."""
    name = getattr(getattr(settings, "config", settings), "device", None)
    if name is not None:
        from instructrl import distributed

        distributed.use(name)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: instructrl COMMAND [OPTIONS]",
            "",
            "Train language models with human feedback: SFT, reward models from ranked answers, PPO and PPO-ptx.",
            "",
            *lines,
            "",
            "`instructrl COMMAND --help` lists the options of a command. `instructrl run miniature` does all steps on",
            "generated data.",
            "Options can also be in a YAML file: --config FILE. --debug shows the traceback of an error.",
        ]
    )


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f", did you mean {close[0]!r}?" if close else f", accepted are {', '.join(COMMANDS)}"


def _described(error: Exception) -> str:
    if _is_loss(error):
        return _LOSS
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        found = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename}: found {found}, accepted is a path that can be used"
    return str(error)


def _show_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python shows it, without credentials."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _fail(message: str) -> int:
    for line in message.splitlines():  # `data check` names several rows
        _say(f"instructrl: error: {line}")
    return 2


def _num_processes() -> str:
    """As torchrun says it. Asked before anything of torch is imported, which takes seconds."""
    return os.environ.get("WORLD_SIZE", "1")


def _is_loss(error: Exception) -> bool:
    if _num_processes() == "1":
        return False
    from instructrl import distributed

    return distributed.is_loss(error)


def _say(line: str) -> None:
    """To whoever started this, and of several processes that find the same, by the first of them."""
    # A name in a file may have what moves the cursor of a terminal.
    line = _CONTROL_CHARACTERS.sub(lambda found: repr(found[0])[1:-1], masked(line))
    if _num_processes() != "1":
        from instructrl import distributed

        if not distributed.told_first(line):
            return
    sys.stderr.write(f"{line}\n")  # in one piece: several processes may have something to say


if __name__ == "__main__":
    sys.exit(main())
