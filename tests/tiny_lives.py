"""A tiny run in processes of their own, from wherever it stands, which may end before their time.

What is imported and set up once is shared: each life is forked. A job of several processes is started as torchrun does
it, by its own launcher.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from tiny_runs import MINIATURE
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from instructrl import cli
from instructrl.models.settings import AdapterConfig, PassConfig
from instructrl.runs.folder import open_folder
from instructrl.runs.settings import MiniatureConfig
from instructrl.trainers import checkpoints, state_files
from instructrl.trainers.settings import CheckpointConfig

# Once, and not in every life.
for _module in ("instructrl.commands.run", "instructrl.runs.miniature", "instructrl.evaluation.report"):
    importlib.import_module(_module)
_PR_SET_PTRACER = 0x59616D61
_ppo = dict(num_episodes=40, rollout_batch=8)


def config(rank: int | None = None, processes: int = 1) -> MiniatureConfig:
    """The whole miniature on next to nothing, saved after every step. rank: of adapters. processes: of a job, over
    which the weights are spread where they are several."""
    passes = PassConfig(spread="fsdp" if processes > 1 else "ddp")
    recipe = MINIATURE.recipe
    assert recipe.pretraining is not None
    return replace(
        MINIATURE,
        checkpoints=CheckpointConfig(every_seconds=0),
        recipe=replace(
            recipe,
            adapter=AdapterConfig(rank=rank),
            pretraining=replace(recipe.pretraining, passes=passes),
            sft=replace(recipe.sft, batch_size=3, passes=passes),
            ppo_start=replace(recipe.ppo_start, batch_size=3, passes=passes),
            reward_model=replace(recipe.reward_model, batch_size=2, passes=passes),
            ppo=replace(recipe.ppo, passes=passes, **_ppo),
            ppo_ptx=replace(recipe.ppo_ptx, passes=passes, **_ppo),
        ),
    )


def command(folder: Path, rank: int | None = None, processes: int = 1) -> list[str]:
    """The command line of that run, with a file of its settings in a folder."""
    settings = open_folder(folder, config(rank, processes)) / "config.yaml"
    return ["run", "miniature", "--config", str(settings)]


def _none(process: int) -> AbstractContextManager:
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """folder: of the run. command: what is given with `--out`. processes: of its job. said: a file for what it says on
    standard error."""

    folder: Path
    command: Sequence[str]
    processes: int = 1
    said: str | Path = os.devnull

    def live(
        self, before_write: Callable[[], None] = lambda: None, recorder: Callable[[int], AbstractContextManager] = _none
    ) -> int:
        """The run in processes of its own. Returns its exit code, that of a signal below 0.

        before_write: called in the main one before everything that brings a file to the disk. recorder: given the
        number of the process, which waits for it to be entered, and left when the process has ended.
        """
        begun, begin = os.pipe()
        child = os.fork()
        if child:
            with recorder(child):
                os.write(begin, b"x")
                status = os.waitpid(child, 0)[1]
            os.close(begun)
            os.close(begin)
            return os.waitstatus_to_exitcode(status)
        code = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))  # a sibling may look on
            os.read(begun, 1)
            code = self._run(before_write) if self.processes == 1 else self._job(before_write)
        finally:
            os._exit(code)

    def _run(self, before_write: Callable[[], None]) -> int:
        _interpose(before_write)
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            open(self.said, "w", encoding="utf-8") as sys.stderr,
            contextlib.redirect_stdout(nowhere),
        ):
            return cli.main([*self.command, "--out", str(self.folder)])

    def _job(self, before_write: Callable[[], None]) -> int:
        def process() -> None:
            code = self._run(before_write if os.environ["RANK"] == "0" else lambda: None)
            if code:  # else the launcher waits for what this gives
                os._exit(code)

        with tempfile.TemporaryDirectory() as logs, open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self.processes,
                run_id="lives",
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                start_method="fork",
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            try:
                elastic_launch(launch, process)()
            except ChildFailedError as error:
                return max(1, *(failure.exitcode for failure in error.failures.values()))
        return 0


def _interpose(before: Callable[[], None]) -> None:
    def preceded(function):
        def call(*args, **kwargs):
            before()
            return function(*args, **kwargs)

        return call

    os.fsync = preceded(os.fsync)
    Path.rename = preceded(Path.rename)
    Path.replace = preceded(Path.replace)
    state_files.save_file = preceded(safetensors.torch.save_file)
    checkpoints.json_digest = preceded(checkpoints.json_digest)


def die_after(events: int, delay: float | None, victims: Callable[[], list[int]], note: Path) -> Callable[[], None]:
    """Kills processes before the write of that number, or a while after it. note: a file that is made before."""
    count = 0

    def kill() -> None:
        note.touch()
        for process in victims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def before() -> None:
        nonlocal count
        count += 1
        if count == events:
            if delay is None:
                kill()
            else:
                threading.Timer(delay, kill).start()

    return before


def myself() -> list[int]:
    return [os.getpid()]


def of_job(rank: int | None) -> Callable[[], list[int]]:
    """The process of that rank, or all of them, whoever asks last."""

    def found() -> list[int]:
        parent = os.getppid()
        there = [int(name) for name in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        return sorted(there, key=lambda process: process == os.getpid()) if rank is None else [there[rank]]

    return found
