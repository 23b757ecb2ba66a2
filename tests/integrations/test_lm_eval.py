"""lm-evaluation-harness on policies: what its own class for transformers models finds, and what is left untouched."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from integrations import local_tasks
from integrations.local_tasks import make
from pages import blocks, read

from instructrl.data.chat import template_of
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.integrations import lm_eval as adapter
from instructrl.types import Conversation, Message

harness = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from instructrl.integrations.lm_eval.model import PolicyLM, RequestEncoder, sampling_of  # noqa: E402
from instructrl.integrations.lm_eval.results import joined, measured, model_rows, suite_entry  # noqa: E402
from instructrl.integrations.lm_eval.tasks import open_tasks  # noqa: E402


def request(task: str, *arguments):
    return SimpleNamespace(task_name=task, args=arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return local_tasks.write(tmp_path_factory.mktemp("tasks"))


# (family, tokenizer's style and backend, chat template): of the templates, those that write an answer as it is.
PAIRS = [
    ("gpt2", "chatml", "byte level", "auto"),
    ("llama", "llama3", "byte level", "none"),
    ("mistral", "mistral", "metaspace, first", "none"),
    ("gemma2", "gemma", "replaced spaces", "auto"),
    ("bloom", "qwen3", "byte level", "none"),
]


@pytest.mark.parametrize(("family", "style", "backend", "chat"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_answers_are_those_of_its_own_class(folder, family, style, backend, chat):
    from lm_eval.models.huggingface import HFLM

    policy, encoder = make(family, style, backend, chat)
    mine = PolicyLM(policy, encoder)
    theirs = HFLM(pretrained=policy.lm, tokenizer=encoder.tokenizer, batch_size=4, max_length=mine._positions)
    found = {}
    for name, lm in (("mine", mine), ("theirs", theirs)):
        tasks = {
            name: task for asked in open_tasks(list(local_tasks.TASKS), folder) for name, task in asked.tasks.items()
        }
        for task in tasks.values():
            task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
            task.set_fewshot_seed(0)
        asked = {"tasks": tasks, "groups": {}}
        chats = {"apply_chat_template": chat == "auto", "fewshot_as_multiturn": True}
        harness.evaluate(lm=lm, task_dict=asked, bootstrap_iters=0, log_samples=False, **chats)
        found[name] = {task: [row.resps[0] for row in own.instances] for task, own in tasks.items()}
    for task, rows in found["theirs"].items():
        if isinstance(rows[0], str):
            assert found["mine"][task] == rows
            continue
        numbers, wanted = np.array(found["mine"][task], dtype=float), np.array(rows, dtype=float)
        np.testing.assert_allclose(numbers, wanted, rtol=2e-5)
    # The few-shot contexts are longer than the network reads, on both sides.
    assert (mine.cut["local_few"] > 0) == (mine._positions is not None)
    assert mine.cut["local_choice"] == 0


@torch.no_grad()
def test_likelihoods_are_those_of_separate_sequences():
    policy, encoder = make("gpt2", "chatml", "byte level")
    pairs = [("", "sky"), ("the sky is", " blue"), ("the sky is ", "blue at dusk"), ("a", " b"), ("a", "")]
    found = PolicyLM(policy, encoder).loglikelihood([request("t", *pair) for pair in pairs])
    reader = RequestEncoder(encoder)
    assert len(reader.behind("the sky is ", "blue")[0]) == len(encoder.prompt("the sky is"))
    for (total, largest), pair in zip(found, pairs, strict=True):
        start, answer = reader.behind(*pair)
        logits = policy.lm(torch.tensor([[*start, *answer]])).logits[0].double()
        rows = logits[len(start) - 1 : len(start) - 1 + len(answer), : policy.num_ids]
        wanted = sum(float(row.log_softmax(-1)[token]) for row, token in zip(rows, answer, strict=True))
        assert total == pytest.approx(wanted, abs=1e-4)
        assert largest == (rows.argmax(-1).tolist() == answer)


@torch.no_grad()
def test_an_answer_of_the_likeliest_tokens_is_told_beside_longer_ones():
    policy, encoder = make("llama", "plain", "byte level")
    rows = []
    for text, length in (("the sky", 1), ("red grey", 4), ("why", 2)):
        start = encoder.prompt(text)
        ids = list(start)
        for _ in range(length):
            ids.append(int(policy.lm(torch.tensor([ids])).logits[0, -1, : policy.num_ids].argmax()))
        answer = ids[len(start) :]
        rows += [(start, answer), (start, [*answer[:-1], (answer[-1] + 1) % policy.num_ids])]
    found = PolicyLM(policy, encoder)._weighed(rows, ["t"] * len(rows))
    assert [largest for _, largest in found] == [True, False] * 3


@torch.no_grad()
def test_the_likeliest_answer_is_the_one_that_is_written():
    policy, encoder = make("llama", "plain", "byte level")
    lm, contexts = PolicyLM(policy, encoder), ["the sky", "red grey", "why"]
    given = {"max_gen_toks": 6, "until": []}
    texts = lm.generate_until([request("t", text, given) for text in contexts])
    for context, text in zip(contexts, texts, strict=True):
        ids = encoder.prompt(context)
        for _ in range(6):
            ids.append(int(policy.lm(torch.tensor([ids])).logits[0, -1, : policy.num_ids].argmax()))
        assert text == encoder.tokenizer.decode(ids[-6:], skip_special_tokens=True)
    assert len(set(texts)) > 1


def test_every_token_of_a_long_text_is_predicted_once():
    policy, encoder = make("gpt2", "chatml", "byte level")
    reader = RequestEncoder(encoder)
    text = "the sky is blue at dusk " * 9
    ids = reader._text(text)
    for length in (5, len(ids) - 1, len(ids), len(ids) + 1):
        windows = reader.windows(text, length)
        assert [token for _, answer in windows for token in answer] == ids
        assert all(len(start) + len(answer) <= length + 1 for start, answer in windows)
        assert all(len(start) + len(answer) == length + 1 for start, answer in windows[1:])
    lm = PolicyLM(policy, encoder)
    windows = reader.windows(text, policy.lm.config.n_positions)
    parts = [lm._weighed([row], ["t"])[0][0] for row in windows]
    assert len(windows) > 1
    assert lm.loglikelihood_rolling([request("t", text)]) == [pytest.approx(sum(parts), rel=1e-5)]


def test_what_a_task_writes_is_no_control_token():
    _, encoder = make("gpt2", "chatml", "byte level", "auto")
    reader, end = RequestEncoder(encoder), encoder.end_of_text
    said = Conversation([Message("user", "the <|im_end|> sky")])
    assert end not in reader.behind("a <|im_end|>", " b <|im_end|>")[1]
    start, answer = reader.behind(said, "red <|im_end|> grey")
    plain = Conversation([Message("user", "the sky")])
    assert start.count(end) == encoder.prompt(plain).count(end) == 2  # of the system's turn and the user's
    assert end not in answer


def test_a_begun_answer_goes_on():
    _, encoder = make("gpt2", "chatml", "byte level", "auto")
    lm = PolicyLM(*make("gpt2", "chatml", "byte level", "auto"))
    history = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "the sky"}]
    begun = lm.apply_chat_template(history, add_generation_prompt=False)
    asked = encoder.prompt(Conversation([Message("user", "why")]))
    assert RequestEncoder(encoder).prompt(begun) == [*asked, *encoder.response("the sky", finished=False)]


def test_a_template_without_system_messages_has_them_in_front_of_what_is_said():
    policy, encoder = make("gpt2", "chatml", "byte level")
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
    )
    encoder.tokenizer.chat_template = template
    lm = PolicyLM(policy, Encoder(encoder.tokenizer, Limits(), template_of(encoder.tokenizer, "auto")))
    found = lm.apply_chat_template([{"role": "system", "content": "Be."}, {"role": "user", "content": "why"}])
    assert [(message.role, message.content) for message in found.messages] == [("user", "Be.\n\nwhy")]
    assert lm.moved_system_messages == 1


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = read("docs/lm_eval.md")
    (task,), (data,), (example,) = (blocks(page, language) for language in ("yaml", "json", "python"))
    (tmp_path / "tasks").mkdir()
    cache = task.replace("dataset_kwargs: {", f"dataset_kwargs: {{cache_dir: {tmp_path / 'cache'}, ")
    (tmp_path / "tasks" / "colours.yaml").write_text(cache, encoding="utf-8")
    (tmp_path / "tasks" / "colours.jsonl").write_text(data, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    policy, encoder = make("gpt2", "chatml", "byte level", "auto")
    exec(compile(example, "example.py", "exec"), {"policy": policy, "encoder": encoder})
    task_name, metric, *numbers = capsys.readouterr().out.split("\n")[-2].split()
    assert (task_name, metric, float(numbers[0]) in (0, 0.5, 1)) == ("colours", "acc", True)


SEEDING = """
import random
import numpy as np
import torch
def text(doc):
    random.seed(3); np.random.seed(3); torch.manual_seed(3)
    return doc["question"] + str(random.random())
"""


def states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_global_generators_are_left_as_they_were(tmp_path):
    task = local_tasks.TASKS["local_next"].replace('"{{question}} "', "!function seeding.text")
    assert "!function" in task
    (tmp_path / "seeding.py").write_text(SEEDING, encoding="utf-8")
    local_tasks.write(tmp_path, {"local_seeding": task})
    policy, encoder = make("gpt2", "chatml", "byte level")
    before = states()
    found = adapter.lm_eval_results(policy, encoder, ["local_seeding"], include_path=tmp_path)
    assert states() == before
    assert {row.measure.metric for row in found.rows} == {"perplexity", "acc"}


def test_the_numbers_of_a_task_and_their_place_in_the_results(folder):
    policy, encoder = make("gpt2", "chatml", "byte level")
    opened = open_tasks(["local_choice", "local_few"], folder)
    found = [joined([measured(policy, encoder, asked) for asked in opened]) for _ in range(2)]
    assert found[0] == found[1]  # the same few-shot examples
    models = [model_rows(name, part) for name, part in zip(("SFT", "PPO"), found, strict=True)]
    entry = json.loads(json.dumps(suite_entry(models), allow_nan=False))
    rows = [row for row in entry["rows"] if row["model"] == "PPO"]
    assert [(row["prompt"], row["shots"], row["metric"]) for row in rows] == [
        ("local_choice", 0, "acc"),
        ("local_few", 2, "acc"),
        ("local_few", 2, "acc_norm"),
    ]
    # By hand: the option of the largest log-probability, of all rows.
    lm = PolicyLM(policy, encoder)
    right = 0
    for row in local_tasks.rows():
        asked = [request("t", f"{row['question']}\nAnswer:", f" {option}") for option in row["options"]]
        totals = [total for total, _ in lm.loglikelihood(asked)]
        right += totals.index(max(totals)) == row["right"]
    share, count = right / 5, 5
    margin = 1.959963984540054 * (share * (1 - share) / (count - 1)) ** 0.5
    first = rows[0]
    assert first["value"] == pytest.approx(share)
    assert (first["low"], first["high"]) == (max(share - margin, 0), pytest.approx(min(share + margin, 1)))
    assert (first["unit"], first["num_items"], first["group"]) == ("share", 5, "")
    assert "SFT: local_few: 15 of the requests are longer than the model reads" in entry["notes"][0]


def test_a_chat_template_in_force_is_used(folder, monkeypatch):
    asked = []
    own = PolicyLM.loglikelihood
    monkeypatch.setattr(PolicyLM, "loglikelihood", lambda lm, rows: asked.append(rows) or own(lm, rows))
    for chat in ("auto", "none"):
        policy, encoder = make("gpt2", "chatml", "byte level", chat)
        adapter.lm_eval_results(policy, encoder, ["local_few"], include_path=folder, limit=1)
    context = asked[0][0].args[0]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]  # the description and two examples
    assert [message.role for message in context.messages] == roles
    assert not isinstance(asked[1][0].args[0], Conversation)


def test_a_group_has_its_tasks_as_parts(tmp_path):
    choice = local_tasks.TASKS["local_choice"]
    local_tasks.write(tmp_path, {"part_a": choice, "part_b": choice})
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [part_a, part_b]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    policy, encoder = make("gpt2", "chatml", "byte level")
    found = adapter.lm_eval_results(policy, encoder, ["both"], include_path=tmp_path, limit=4)
    measures = [(row.task, row.measure.group, row.measure.num_items) for row in found.rows]
    assert measures == [("both", "", 8), ("both", "part_a", 4), ("both", "part_b", 4)]
    assert len({row.measure.value for row in found.rows}) == 1


def test_tasks_that_sample_draw_with_their_seed(folder):
    policy, encoder = make("gpt2", "chatml", "byte level")
    given = {"max_gen_toks": 5, "do_sample": True, "temperature": 1.0, "top_k": 5}
    asked = [request("t", "the sky", given)] * 3

    def texts(seed: int) -> list[str]:
        return PolicyLM(policy, encoder, seed).generate_until(asked)

    assert texts(0) == texts(0)
    assert len({*texts(0), *texts(1)}) > 3  # of one seed they differ as well


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs: found num_beams, accepted are do_sample, max_completion_tokens, "),
        ({"max_gen_toks": 64}, "generation_kwargs: max_gen_toks: found 64, accepted are 1 to 63 for a model of 64 "),
        ({"max_gen_toks": 0}, "generation_kwargs: max_gen_toks: found 0, accepted are 1 to 63"),
    ],
)
def test_drawing_that_is_not_known(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sampling_of(given, 64, 0)


def test_drawing_without_a_length_takes_half_of_a_short_network():
    assert sampling_of({}, 64, 0).max_response_tokens == 32
    assert sampling_of({"temperature": 0.7}, None, 0).max_response_tokens == 256
    assert sampling_of({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, None, 0).temperature == 0
