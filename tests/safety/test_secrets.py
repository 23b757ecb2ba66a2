"""What stands in the environment is neither written nor said: tokens of clouds and hubs least of all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_arguments import TINY_RUN

SENTINEL = "s3cr3t-0f-the-envir0nment"
SECRETS = {
    name: f"{SENTINEL}-{number}"
    for number, name in enumerate(
        (
            *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY"),
            *("ANTHROPIC_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "DATABASE_PASSWORD", "PIP_INDEX_URL"),
        )
    )
}
START = "from instructrl import cli; import sys; sys.exit(cli.main(sys.argv[1:]))"


def told(text: bytes) -> bool:
    """Whether the sentinel is there, as text or in one of the ways in which text is packed."""
    return any(SENTINEL.encode(coding) in text for coding in ("utf-8", "utf-16-le"))


@pytest.fixture
def start(tmp_path):
    """(arguments, code) -> the finished process, whose environment has secrets."""

    def run(*arguments: object, code: str = START) -> subprocess.CompletedProcess[bytes]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **SECRETS, "PYTHONPATH": path},
        )

    return run


def test_a_run_tells_no_secret(start, good, tmp_path):
    data = good / "data"
    out = tmp_path / "out"
    found = start(
        *("--debug", "run", "files", "--model", good / "policy", "--data", data, "--corpus", data / "corpus.jsonl"),
        *("--out", out, *TINY_RUN),
    )
    assert found.returncode == 0, found.stderr.decode()[-2000:]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"config.yaml", "results.json", "report.html", "metrics.jsonl", "profile.jsonl", "config.json"} <= {
        path.name for path in files
    }
    assert not [path for path in files if told(path.read_bytes()) or told(path.name.encode())]
    assert not told(found.stdout + found.stderr)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("doctor",), 0),
        (("run", "files", "--model", "nowhere", "--data", "nowhere", "--corpus", "nowhere"), 1),
        (("sft", "--model", "evil/nowhere", "--data", "a.jsonl", "--validation", "b.jsonl", "--out", "out"), 1),
        (("data", "check", "prompts", "hub:evil/nowhere"), 1),
        (("run", "smoke", "--seed", "x"), 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_an_error_tells_no_secret_even_with_its_traceback(start, tmp_path, arguments, code):
    found = start("--debug", *arguments)
    assert found.returncode == code, found.stderr.decode()[-2000:]
    assert (b"Traceback" in found.stderr) == (code == 1)
    assert not told(found.stdout + found.stderr)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and told(path.read_bytes())]


@pytest.mark.parametrize("place", ["a file", "standard output", "standard error"])
def test_a_secret_that_is_told_is_noticed(start, tmp_path, place):
    """Otherwise the tests above would prove nothing."""
    targets = {"a file": "open('config.yaml', 'w')", "standard output": "sys.stdout", "standard error": "sys.stderr"}
    found = start(code=f"import os, sys; print(dict(os.environ), file={targets[place]})")
    assert found.returncode == 0
    written = [Path(path) for path in tmp_path.rglob("*") if path.is_file() and told(path.read_bytes())]
    assert bool(written) == (place == "a file")
    assert told(found.stdout + found.stderr) == (place != "a file")
