"""`make gpu` where there is no GPU: what it would run, and what it makes of steps that fail, hang or lack something."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.core import machine
from benchmarks.device import gpu, sanitized, steps
from benchmarks.device.steps import Step
from instructrl.ops.cases import CASES

ROOT = Path(__file__).resolve().parent.parent

FILES = {
    *("gpu.md", "gpu.json", "gpu.log", "gpu-targets.md", "gpu-targets.json", "gpu-targets.log", "tests.xml"),
    *("gpu-bench.md", "gpu-bench.json"),
}
STEPS = steps.steps((9, 0), Path("out"), [])


def python(code, name="step", **settings):
    return Step(**{"name": name, "command": (sys.executable, "-c", code), "limit_s": 40, **settings})


@pytest.fixture
def run(tmp_path, capsys):
    """Steps in a folder; their outcomes, the files' contents and what was printed."""

    def run(*steps, seconds=120.0):
        gpu.Run({"gpu": "A GPU"}, tmp_path, time.monotonic() + seconds).all(steps)
        found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
        assert found["machine"] == {"gpu": "A GPU"}
        return found["steps"], (tmp_path / "gpu.log").read_text(encoding="utf-8"), capsys.readouterr().out

    return run


def test_what_is_worth_most_comes_first():
    names = [step.name for step in STEPS if not step.after]
    assert names == ["build", "self-test", "targets", "tests", "memcheck", "racecheck", "synccheck", "benchmarks"]
    assert gpu.BUDGET_S < 600
    # The targets are reached, and have their time, where everything before them takes all of its own.
    assert sum(step.limit_s for step in STEPS[:4]) <= gpu.BUDGET_S


def test_results_are_few_plain_files():
    files = {name for step in STEPS for name in step.files} | {"gpu.md", "gpu.json", "gpu.log"}
    assert files == FILES


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "80"), ((9, 0), "90a"), ((10, 0), "100"), ((12, 0), "120")])
def test_only_this_gpu_is_built_for(capability, name):
    build = steps.steps(capability, Path("out"), [])[0]
    assert build.environment["INSTRUCTRL_CUDA_ARCHITECTURES"] == name


def test_sanitizers_see_every_op_that_has_kernels_of_its_own_from_the_start():
    ops = {case.op for case in CASES if "linear" not in case.op}
    assert {case.op for case, _ in sanitized.jobs()[: len(ops)]} == ops
    assert {str(dtype) for _, dtype in sanitized.jobs()} == {"torch.float32", "torch.bfloat16", "torch.float16"}


def test_sanitizers_look_at_our_kernels_alone():
    chosen = [step for step in STEPS if step.name.endswith("check")]
    assert all("kns=instructrl" in step.command for step in chosen)
    for path in (ROOT / "csrc" / "cuda").glob("*.cu"):
        text = path.read_text(encoding="utf-8")
        assert 0 < text.index("namespace instructrl {") < text.index("__global__")
        assert text.rindex("__global__") < text.index("}  // namespace instructrl")


@pytest.mark.parametrize(
    ("step", "state", "code", "summary"),
    [
        (python("print('one'); print('two')"), "passed", 0, "two"),
        (python("import sys; print('no'); sys.exit(3)"), "failed", 3, "no"),
        (python("import os; print('begun', flush=True); os.abort()"), "failed", -signal.SIGABRT, "begun"),
        (Step(name="step", command=("/no/such/program",), limit_s=40), "not run", None, "/no/such/program is not here"),
        (python("1", needs=("no-such-package",)), "not run", None, "no-such-package is not installed"),
    ],
    ids=["passes", "fails", "crashes", "cannot start", "lacks a package"],
)
def test_what_became_of_a_step(run, monkeypatch, step, state, code, summary):
    monkeypatch.setattr(gpu, "minimums", lambda: {"no-such-package": "1.0"})
    (found,), log, printed = run(step)
    assert (found["state"], found["exit_code"]) == (state, code)
    assert summary in found["summary"]
    assert f"step: {state}" in printed
    assert state == "not run" or summary in log


def test_what_a_compiler_said_is_shown(run):
    code = "print('x.cu:1: error: no such thing'); [print('line', n) for n in range(99)]; raise SystemExit(1)"
    printed = run(python(code))[2]
    assert "x.cu:1: error: no such thing" in printed
    assert "line 98" in printed
    assert "line 50" not in printed


def test_versions_count_and_not_presence_alone(monkeypatch):
    monkeypatch.setattr(gpu, "version", {"setuptools": "65.5.1", "torch": "2.11.0+cu130"}.get)
    step = python("1", needs=("setuptools", "torch", "ninja"))
    assert gpu.lacking(step) == (
        "setuptools 65.5.1, accepted is 77 or later; ninja is not installed, accepted is 1.11 or later"
    )


def test_every_need_has_a_version():
    assert {name for step in STEPS for name in step.needs} <= set(gpu.minimums())


WAITS = """
import signal, sys, time
def told(*_):
    print("what was found until then", flush=True)
    sys.exit(5)
signal.signal(signal.SIGINT, told)
print("begun", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"


# As pytest-xdist: it ends when what it started does.
LEADS = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(subprocess.run([sys.executable, "-c", {WAITS!r}]).returncode)
"""


def test_a_step_is_interrupted_before_its_limit(tmp_path):
    codes = {"waits": WAITS, "leads": LEADS, "deaf": DEAF}

    def outcomes(name):
        (tmp_path / name).mkdir()
        run = gpu.Run({}, tmp_path / name, time.monotonic() + 100.0)
        run.all([python(codes[name], limit_s=8), python("print('right')")])
        return [(x["state"], x["exit_code"], x["summary"]) for x in run.outcomes]

    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        found = dict(zip(codes, pool.map(outcomes, codes), strict=True))
    said = {"waits": "what was found until then", "leads": "what was found until then", "deaf": "begun"}
    assert found == {name: [("cut off", None, text), ("passed", 0, "right")] for name, text in said.items()}
    assert time.monotonic() - start < 60


def test_nothing_that_a_step_started_outlives_it(run):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)"
    _, log, _ = run(python(code))
    state = Path(f"/proc/{int(log.strip().splitlines()[-1])}/stat")

    def is_there() -> bool:
        return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"

    deadline = time.monotonic() + 10
    while is_there() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_there()


def test_a_step_gets_what_is_left(run):
    code = "import sys; print(sys.argv[1])"
    step = Step(name="step", command=(sys.executable, "-c", code, "{seconds}"), limit_s=200)
    (found,), _, _ = run(step, seconds=100.0)
    # Less what it has to say goodbye, twice: its own end, and ours.
    assert 60 <= float(found["summary"]) <= 70
    assert run(step, seconds=1.0)[0][0]["summary"] == "no time was left"


def test_one_stands_in_for_another_that_failed(run):
    instead = python("print('instead')", name="b", after="a")
    found, _, _ = run(python("raise SystemExit(1)", name="a"), instead)
    assert [x["state"] for x in found] == ["failed", "passed"]
    found, _, _ = run(python("1", name="a"), instead)
    assert [x["name"] for x in found] == ["a"]


def test_nothing_of_an_earlier_run_stays(run, tmp_path):
    (tmp_path / "tests.xml").write_text("old")
    run(python("1", files=("tests.xml",)))
    assert not (tmp_path / "tests.xml").exists()


def test_steps_ask_no_network(run, monkeypatch):
    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    code = "import os; print(os.environ['PIP_NO_INDEX'], 'PIP_CONSTRAINT' in os.environ)"
    assert run(python(code))[0][0]["summary"] == "1 False"
    for step in STEPS:
        if step.name.startswith("build"):
            assert {"--no-build-isolation", "--no-deps"} <= set(step.command)


def test_results_go_where_they_can(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert machine.results_folder(tmp_path / "asked", "A GPU") == (tmp_path / "asked").resolve()
    assert machine.results_folder(None, "A GPU") == (tmp_path / "out").resolve()
    assert machine.results_folder(tmp_path / "file" / "asked", "A GPU") == (tmp_path / "out").resolve()
    assert f"gpu: cannot write results to {tmp_path / 'file' / 'asked'}" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_wheels_of_peers_are_installed_one_by_one(tmp_path):
    (tmp_path / "bad-1.0-py3-none-any.whl").write_text("no wheel")
    (step,) = steps.peers([tmp_path / "bad-1.0-py3-none-any.whl"])
    assert step.command[-1] == str(tmp_path / "bad-1.0-py3-none-any.whl")
    assert steps.peers([]) == []


def test_a_version_that_came_as_a_wheel_counts(monkeypatch, tmp_path):
    (tmp_path / "setuptools-999.0.dist-info").mkdir()
    (tmp_path / "setuptools-999.0.dist-info" / "METADATA").write_text("Name: setuptools\nVersion: 999.0\n")
    assert steps.version("setuptools") not in (None, "999.0")
    monkeypatch.setattr(steps, "SITE", tmp_path)
    assert steps.version("setuptools") == "999.0"
    assert steps.version("no-such-package") is None


def test_tests_run_side_by_side_where_they_can(monkeypatch):
    monkeypatch.setattr(steps, "version", lambda package: None)
    assert "-n" not in steps.tests(Path("out"), "cuda").command
    monkeypatch.setattr(steps, "version", lambda package: "3.8")
    assert "-n" in steps.tests(Path("out"), "cuda").command


# The command with steps that take no time, in a process that can be interrupted.
FAKE = """
import sys
from benchmarks.device import gpu
from benchmarks.device.steps import Step
def steps(folder, wheels):
    made = []
    for number, code in enumerate(sys.argv[sys.argv.index("--") + 1 :]):
        made.append(Step(name=f"step {number}", command=(sys.executable, "-c", code), limit_s=60))
    sys.argv = sys.argv[: sys.argv.index("--")]
    return made
parsed = gpu.parsed
def cut():
    everything, sys.argv = sys.argv, sys.argv[: sys.argv.index("--")]
    found, sys.argv = parsed(), everything
    return found
gpu.parsed, gpu.dry_steps = cut, steps
raise SystemExit(gpu.main())
"""


def command(folder, *codes):
    arguments = ["--dry", "--out", str(folder), "--", *codes]
    return subprocess.Popen(
        [sys.executable, "-c", FAKE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_whole_command(tmp_path):
    child = command(tmp_path, "print('right')", "raise SystemExit('wrong')")
    printed = child.communicate()[0]
    assert child.returncode == 1
    assert re.search(r"\| step 0 \| passed \| [\d.]+ \| right \|", printed)
    assert "| step 1 | failed |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.md", "gpu.json", "gpu.log"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_it_has(tmp_path, number):
    child = command(tmp_path, "print('right')", WAITS, "print('never')")
    log = tmp_path / "gpu.log"
    for _ in range(600):
        if log.exists() and "\nbegun" in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    os.kill(child.pid, number)
    child.communicate()
    assert child.returncode == 130
    steps = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["steps"]
    assert [(x["name"], x["state"], x["summary"]) for x in steps] == [
        ("step 0", "passed", "right"),
        ("step 1", "interrupted", "what was found until then"),
    ]


def test_a_machine_without_a_gpu_is_told(monkeypatch, capsys):
    def nothing():
        raise RuntimeError("torch sees no NVIDIA GPU")

    monkeypatch.setattr(machine, "gpu", nothing)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "gpu: torch sees no NVIDIA GPU\n"


def test_a_step_that_is_none_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--out", str(tmp_path), "--only", "bild"])
    assert gpu.main() == 2
    assert "gpu: --only: found ['bild'], accepted are ['build'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry"])
    assert gpu.main() == 2
    assert "gpu: --dry needs --out" in capsys.readouterr().err
