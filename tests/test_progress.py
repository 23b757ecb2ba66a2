"""Progress lines: what stays at any width, that each wait says how far it is, and what a log gets of it."""

import io
import re

import pytest
from rich.console import Console
from tiny import blocks, comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import progress
from instructrl.data.encoding import blocks_as_sequences, pack_documents
from instructrl.data.hygiene import drop_common_prefixes, limit_lengths, remove_personal_data
from instructrl.data.readers import check, read_demonstrations, write_jsonl
from instructrl.progress import Line
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.scoring import comparison_scores, in_batches, mean_loss, score_texts
from instructrl.runs.journal import Journal
from instructrl.runs.reading import Reader
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig
from instructrl.types import Document

WIDTHS = [40, 60, 80, 120, 200]
ENCODER = tiny_encoder()
ROWS = demonstrations(20)
PROMPTS, COMPLETIONS = [row.prompt for row in ROWS], [row.completion for row in ROWS]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that is put forward by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def running(clock, name: str, notes: tuple[str, ...] = ()) -> Line:
    line = Line(name, 1_200, lasting=True, unit="episodes")
    line.done, line.units, line.notes = 504, 99_477.5, notes
    clock[0] += 504.0
    return line


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["ppo", "completions (training)", "runs/mine/models/ppo_ptx"])
@pytest.mark.parametrize("notes", [(), ("score +0.49", "kl 0.58", "update 58%", "logprobs 21%")])
def test_name_share_time_and_a_number_stay_at_any_width(clock, width, name, notes):
    text = running(clock, name, notes).text(width)
    assert len(text) <= width
    assert "42%" in text
    assert "0:11:36 left" in text
    assert (notes[0] if notes else "504/1,200") in text
    assert name in text or text.startswith((name[:2], "…")) or name[-6:] in text


def test_details_come_with_the_width_and_the_bar_says_what_the_share_says(clock):
    line = running(clock, "ppo", ("score +0.49", "kl 0.58", "update 58%", "logprobs 21%"))
    texts = [line.text(width) for width in WIDTHS]
    details = ["━", "504/1,200", "197.4 episodes/s", "kl 0.58", "update 58%", "logprobs 21%"]
    shown = [sum(detail in text for detail in details) for text in texts]
    assert shown == sorted(shown)
    assert shown[-1] == len(details)
    assert "━" in texts[2]
    full, empty = texts[-1].count("━"), texts[-1].count("╌")
    assert full == 28 * 504 // 1200
    assert full + empty == 28


def test_a_share_is_whole_only_when_all_is_done():
    line = Line("rows", 1_000)
    line.done = 999
    assert " 99%" in line.text(80)
    assert "-:--:-- left" in Line("rows", 5).text(80)
    assert Line("loading x", None).text(80) == "loading x 0:00:00"


class Watch(progress.Display):
    """Keeps every line that was shown, and draws nothing."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.seen: list[Line] = []

    def of(self, line):
        self.seen.append(line)
        return super().of(line)


@pytest.fixture
def watch(monkeypatch):
    found = Watch()
    monkeypatch.setattr(progress, "Display", lambda console: found)
    with progress.shown_on(found.console):
        yield found


POLICY = tiny_policy(ENCODER)
REWARD_MODEL = tiny_reward_model(POLICY)
PLAIN = [Document(text="w1 w2 w3 w4 w5 w6")] * 7


def _file(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


def _rows(tmp_path):
    return read_demonstrations(_file(tmp_path))


# What takes long where data or networks are large -> how much its line counts; None: nobody can say before.
WAITS = {
    "sampling": (lambda _: sample_rollout(POLICY, ENCODER, PROMPTS, Sampling(seed=0, max_response_tokens=2)), 20),
    "scores": (lambda _: score_texts(REWARD_MODEL, ENCODER, PROMPTS, COMPLETIONS), 20),
    "scores of comparisons": (lambda _: comparison_scores(REWARD_MODEL, ENCODER, comparisons(20)), 20),
    "scoring": (lambda _: in_batches(POLICY, blocks_as_sequences(blocks(9)), 4), 9),
    "loss": (lambda _: mean_loss(POLICY, [blocks_as_sequences(blocks(9)), blocks_as_sequences(blocks(3))]), 2),
    "plain text to tokens": (lambda _: pack_documents(PLAIN, ENCODER.tokenizer, 4), 7),
    "reading": (lambda path: Reader(ENCODER, "drop").demonstrations(_file(path)), 20),
    "rows": (lambda path: check(_rows(path)), 20),
    "looking for the rows of": (_rows, None),
    "common prefixes": (lambda _: drop_common_prefixes(ROWS), 20),
    "personal data": (lambda _: remove_personal_data(ROWS), 20),
    "lengths": (lambda _: limit_lengths(ROWS, ENCODER.tokenizer), 20),
    "x: a digest of data and models": (
        lambda path: Journal(path, RunLog(path), CheckpointConfig()).once("x", lambda *_: 0, {"a": 1, "b": 2}),
        2,
    ),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_says_how_far_it_is(name, watch, tmp_path):
    work, total = WAITS[name]
    work(tmp_path)
    line = next(line for line in watch.seen if line.name.startswith(name))
    assert (line.total, line.done) == (total, total or 0)
    assert line.over


def test_a_network_that_is_loaded_or_saved_is_named(watch, tmp_path):
    POLICY.save(tmp_path / "model", ENCODER.tokenizer)
    type(POLICY).load(tmp_path / "model")
    assert f"loading {tmp_path / 'model'}" in [line.name for line in watch.seen]


def test_without_a_display_nothing_is_shown(capfd):
    score_texts(REWARD_MODEL, ENCODER, PROMPTS, COMPLETIONS)
    assert capfd.readouterr() == ("", "")


def logged(clock, seconds: float) -> list[str]:
    """What a log gets of a phase of ten steps that take so long each, with a wait of as many rows in each of them."""
    console = Console(file=io.StringIO())
    with RunLog(None, console).phase("ppo", 10, "episodes") as phase:
        for _ in range(10):
            for _ in progress.through("sampling", range(4)):
                clock[0] += seconds / 4
            phase.advance(units=64, note="score +0.49  kl 0.58")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_has_a_line_a_minute_and_one_at_the_end(clock):
    (line,) = logged(clock, 0.5)
    assert re.match(r"ppo ━+ 100% in 0:00:05 score \+0\.49 10/10 128\.0 episodes/s kl 0\.58$", line)
    lines = logged(clock, 40)
    assert sum(line.startswith("ppo") for line in lines) in range(5, 8)
    assert not any(line.startswith("sampling") for line in lines)
    lines = logged(clock, 400)
    assert sum(line.startswith("sampling") for line in lines) in range(40, 52)


def test_a_terminal_shows_a_short_wait_never_and_a_long_one_below_its_phase(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False, _environ={})
    with RunLog(None, console).phase("ppo", 10), progress.wait("sampling", 4) as advance:
        display = progress._display.get()
        assert display is not None
        advance()
        probe = Console(file=io.StringIO(), width=80)
        probe.print(display)
        clock[0] += progress.SHOWN_AFTER
        probe.print(display)
    assert isinstance(probe.file, io.StringIO)
    before, above, below = probe.file.getvalue().splitlines()
    assert before.startswith("ppo")
    assert above.startswith("ppo")
    assert re.match(r"sampling ━+╌+  25% 0:00:06 left 1/4", below)


def test_a_display_is_gone_after_an_error(clock):
    """The wait that was broken off is still held by the traceback."""
    console = Console(file=io.StringIO(), force_terminal=True, _environ={})

    def fail() -> None:
        for _ in progress.through("rows", range(3)):
            raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row") as caught, progress.shown_on(console) as display:
        fail()
    assert caught.tb is not None
    assert display._live is None
