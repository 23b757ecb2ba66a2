"""`make gpu-check` where there is no GPU: what it would run, and what it makes of steps that fail or hang."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
from gpu_check import Step  # noqa: E402

from instructrl.ops.cases import CASES  # noqa: E402


def python(code, **settings):
    return Step(**{"name": "step", "command": (sys.executable, "-c", code), "limit_s": 20, **settings})


def test_all_steps_fit_in_eight_minutes():
    steps = gpu_check.steps(Path("x.json"), (9, 0))
    assert sum(step.limit_s for step in steps) <= 480
    assert [step.name for step in steps if step.needed] == ["build", "doctor"]


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "80"), ((9, 0), "90a"), ((10, 0), "100"), ((12, 0), "120")])
def test_only_this_gpu_is_built_for(capability, name):
    build = gpu_check.steps(Path("x.json"), capability)[0]
    assert dict(build.environment)["INSTRUCTRL_CUDA_ARCHITECTURES"] == name


@pytest.mark.parametrize("chosen", [gpu_check.SANITIZED, gpu_check.RACES])
def test_sanitizers_see_every_op_that_has_kernels_of_its_own(chosen):
    ops = set()
    for case in CASES:
        test = f"test_case[{case.op}-{case.name}-native-cuda-float32]"
        words = re.sub(
            r"\w+", lambda word: word[0] if word[0] in ("and", "or", "not") else f"('{word[0]}' in test)", chosen
        )
        if not case.large and eval(words, {"test": test}):
            ops.add(case.op)
    assert ops >= {case.op for case in CASES if "linear" not in case.op and "sampling" not in case.op}


@pytest.mark.parametrize(
    ("step", "code", "summary"),
    [
        (python("print('one'); print('two')"), 0, "two"),
        (python("import sys; print('no'); sys.exit(3)"), 3, "no"),
        (python("import time; print('begun', flush=True); time.sleep(60)", limit_s=3), None, "begun"),
        (Step(name="step", command=("/no/such/program",), limit_s=5), 127, "No such file"),
    ],
    ids=["passes", "fails", "hangs", "cannot start"],
)
def test_what_a_step_came_to_is_written_down(tmp_path, step, code, summary):
    log = tmp_path / "log"
    log.write_text("before\n", encoding="utf-8")
    outcome = gpu_check.run(step, log)
    assert outcome.exit_code == code
    assert summary in outcome.summary
    assert outcome.seconds < 20
    assert log.read_text(encoding="utf-8").startswith("before\n")


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """A machine that has one, whose steps are given."""

    def run(*steps):
        found = {"gpu": "A GPU", "capability": [9, 0]}
        monkeypatch.setattr(gpu_check, "why_not", lambda: "")
        monkeypatch.setattr(gpu_check, "machine", lambda: found)
        monkeypatch.setattr(gpu_check, "steps", lambda *_: steps)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
        code = gpu_check.main()
        return code, json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))

    return run


def test_a_step_that_fails_does_not_stop_the_next_one(on_a_gpu):
    code, results = on_a_gpu(python("raise SystemExit(1)"), python("print('right')"))
    assert code == 1
    assert [step["exit_code"] for step in results["steps"]] == [1, 0]
    assert results["machine"]["gpu"] == "A GPU"


def test_without_what_is_needed_nothing_else_is_tried(on_a_gpu):
    code, results = on_a_gpu(python("raise SystemExit(1)", needed=True), python("print('right')"))
    assert code == 1
    assert len(results["steps"]) == 1


def test_all_right(on_a_gpu):
    assert on_a_gpu(python("print('right')"))[0] == 0


def test_a_machine_without_a_gpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "why_not", lambda: "torch sees no NVIDIA GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == "gpu-check: torch sees no NVIDIA GPU\n"
