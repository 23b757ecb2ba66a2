"""lm-evaluation-harness on the command line, and tasks that cannot be opened."""

import json
import sys

import pytest
from integrations import local_tasks
from integrations.local_tasks import make

from instructrl import cli
from instructrl.evaluation.report import write_report

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from instructrl.integrations.lm_eval.model import PolicyLM
from instructrl.integrations.lm_eval.tasks import open_tasks

BAD = {
    "metric": (local_tasks.TASKS["local_choice"].replace("metric: acc,", "metric: nonsense,"), "found the metric 'non"),
    "unsafe": (local_tasks.TASKS["local_write"] + "unsafe_code: true\n", "which runs code that models write"),
    "output": (local_tasks.TASKS["local_write"].replace("generate_until", "sing"), "found ValueError: Got invalid out"),
    "function": (local_tasks.TASKS["local_next"].replace('"{{question}} "', "!function gone.text"), "found ImportErr"),
    "column": (local_tasks.TASKS["local_choice"].replace('"{{options}}"', '"{{nothing}}"'), "found "),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_task_that_is_wrong_is_told_in_one_line(tmp_path, kind):
    task, message = BAD[kind]
    local_tasks.write(tmp_path, {"bad": task})
    with pytest.raises(ValueError, match=r"^lm_eval: .*bad") as found:
        open_tasks(["bad"], tmp_path)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def own_tasks_alone(monkeypatch) -> None:
    """Not those of lm-eval, fourteen thousand names that are looked through in seconds."""
    tasks = pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager
    monkeypatch.setattr(
        tasks,
        "TaskManager",
        lambda include_path=None, **_: manager(include_path=include_path, include_defaults=False),
    )


def test_an_unknown_task_and_a_folder_that_is_not_there(tmp_path, monkeypatch):
    own_tasks_alone(monkeypatch)
    with pytest.raises(
        ValueError, match=r"^lm_eval: found 'local_chioce', accepted are the names that `lm-eval ls tas"
    ):
        open_tasks(["local_chioce"], local_tasks.write(tmp_path))
    with pytest.raises(ValueError, match=r"^lm_eval_tasks: found no folder .*gone, accepted is one with YAML files"):
        open_tasks(["local_choice"], tmp_path / "gone")


def test_the_command_puts_models_through_tasks_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    local_tasks.write(tmp_path)
    for family in ("gpt2", "llama"):
        policy, encoder = make(family, "chatml", "byte level", "auto")
        policy.save(tmp_path / family, encoder.tokenizer)
    monkeypatch.chdir(tmp_path)
    words = "eval --models gpt2 llama --lm-eval local_choice local_write --lm-eval-tasks . --lm-eval-limit 3 --out out"
    assert cli.main(words.split()) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (entry,) = results["suites"]
    asked = [(row["model"], row["prompt"], row["metric"], row["num_items"]) for row in entry["rows"]]
    assert asked == [
        (model, task, metric, 3)
        for model in ("gpt2", "llama")
        for task, metric in (("local_choice", "acc"), ("local_write", "exact_match"))
    ]
    assert "lm-evaluation-harness" in capsys.readouterr().out
    assert "local_choice: acc" in write_report(tmp_path / "out").read_text(encoding="utf-8")
    # The same command has all answers; another row of data has to be asked anew.
    weighed = []
    own = PolicyLM.loglikelihood
    monkeypatch.setattr(PolicyLM, "loglikelihood", lambda *given: weighed.append(given) or own(*given))
    assert cli.main(words.split()) == 0
    assert weighed == []
    assert json.loads((tmp_path / "out" / "results.json").read_text())["suites"] == results["suites"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in local_tasks.rows(seed=1)))
    assert cli.main(words.split()) == 0
    assert len(weighed) == 2


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "lm_eval: found 'local', accepted are the names that `lm-eval ls tasks` lists and those of ."),
        (
            {"local": local_tasks.TASKS["local_write"].replace("max_gen_toks: 12", "num_beams: 3")},
            "lm_eval: local: generation_kwargs: found num_beams, accepted are do_sample, max_completion_tokens, "
            "max_gen_toks, max_new_tokens, max_tokens, min_p, temperature, top_k, top_p, until",
        ),
    ],
)
def test_the_command_refuses_before_a_model_is_asked(tmp_path, monkeypatch, capsys, tasks, message):
    own_tasks_alone(monkeypatch)
    local_tasks.write(tmp_path, tasks)
    policy, encoder = make("gpt2", "chatml", "byte level", "auto")
    policy.save(tmp_path / "model", encoder.tokenizer)
    monkeypatch.chdir(tmp_path)
    words = "eval --models model --lm-eval local --lm-eval-tasks . --out out"
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"instructrl: error: {message} (--debug shows where)"
    assert not (tmp_path / "out").exists()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"^lm_eval: found no lm-eval, .* pip install instructrl\[lm-eval\]$"):
        open_tasks(["local_choice"])
