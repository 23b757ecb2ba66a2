"""`instructrl`: one command for each step of the paper, and `run` for all of them."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from instructrl import __version__, interruption

# Command -> (what it does, where it is carried out). Imported when asked for, so that --help needs no torch.
COMMANDS = {
    "run": ("all steps of a named run, from data to report", "instructrl.commands.run"),
    "sft": ("step 1: fine-tune a language model on demonstrations", "instructrl.commands.sft"),
    "rm": ("step 2: train a reward model on comparisons", "instructrl.commands.rm"),
    "ppo": ("step 3: PPO or PPO-ptx against a reward model", "instructrl.commands.ppo"),
    "eval": ("compare models on prompts, judged by a reward model", "instructrl.commands.eval"),
    "report": ("write report.html for a finished run", "instructrl.commands.report"),
    "data": (
        "prepare data as the paper does: duplicates, caps, splits by user, personal data",
        "instructrl.commands.data",
    ),
    "doctor": ("which kernels can be used here, and why not", "instructrl.commands.doctor"),
}


# Commands that save what they do: a signal lets their step finish. The others it simply ends.
CONTINUED = ("run", "sft", "rm", "ppo")


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
    try:
        # A variable of the environment may be wrong, which shows when backends are loaded.
        with interruption.heeded() if arguments[0] in CONTINUED else nullcontext():
            return importlib.import_module(COMMANDS[arguments[0]][1]).main(arguments[1:])
    except interruption.Interrupted as signal:
        print(f"instructrl: stopped by {signal}; the same command goes on from here", file=sys.stderr)
        return signal.exit_code
    except KeyboardInterrupt:
        print("instructrl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # somebody reads our output with `head`
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        if debug:
            raise
        return _fail(f"{_described(error)} (--debug shows where)")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: instructrl COMMAND [OPTIONS]",
            "",
            "Instruction following from human feedback: SFT, reward models over K-wise comparisons, PPO and PPO-ptx.",
            "",
            *lines,
            "",
            "`instructrl COMMAND --help` explains a command; `instructrl run miniature` shows all of them at work.",
            "Any option can come from a YAML file: --config FILE. --debug shows the traceback of an error.",
        ]
    )


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f", did you mean {close[0]!r}?" if close else f", accepted are {', '.join(COMMANDS)}"


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        found = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename}: found {found}, accepted is a path that can be used"
    return str(error)


def _fail(message: str) -> int:
    for line in message.splitlines():  # `data check` names several rows
        print(f"instructrl: error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
