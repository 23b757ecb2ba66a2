"""Threads by the size of the work: the rule, who overrules it, where it is applied and told."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from tiny import comparisons, demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import cli, threads
from instructrl.models.decoding import Decoder
from instructrl.models.policy import gpt2_policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.settings import AdapterConfig
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.runs.settings import MINIATURE
from instructrl.trainers.checkpoints import rounding

ADAPTER = AdapterConfig(rank=2)


@pytest.fixture
def four(monkeypatch):
    """A machine of four cores, whose user says nothing."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("weights", "tokens", "expected"),
    [
        (128 * 128, 64, 1),  # the tiny products: 2 M operations
        (128 * 128 * 3, 256, 1),  # a step of decoding of the miniature
        (128 * 128 * 3, 64 * 92, 8),  # its microbatch of PPO: 580 M
        (768 * 768 * 3, 16, 1),
        (768 * 768 * 3, 256, 8),
        (4096 * 4096 * 3, 1, 8),  # 201 MB to read for one token
        (1, 0, 1),
    ],
)
def test_a_thread_for_each_millisecond_of_work(weights, tokens, expected):
    assert threads.number(weights, tokens, most=8) == expected
    assert threads.number(weights, tokens, most=1) == 1


def miniature_policy():
    shape = MINIATURE.model
    return gpt2_policy(
        vocabulary=1000, context=shape.context, layers=shape.layers, width=shape.width, heads=shape.heads, end_of_text=0
    )


@pytest.mark.usefixtures("four")
def test_the_miniature_decodes_with_one_thread_and_trains_with_all():
    policy, seen = miniature_policy(), []
    rows, reads = torch.arange(64)[:, None].repeat(1, 92), torch.ones(64, 92, dtype=torch.bool)  # nothing in common
    with threads.by_work(), torch.no_grad():
        decoder = Decoder(policy, rows, reads)
        seen.append(torch.get_num_threads())
        decoder.append(rows[:, 0])
        seen.append(torch.get_num_threads())
    assert seen == [4, 1]
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four")
def test_passes_of_a_tiny_network_take_one_thread_inside_alone():
    encoder = tiny_encoder()
    policy = tiny_policy(encoder)
    rollout = sample_rollout(policy, encoder, ["w1 w2"], Sampling(seed=0, max_response_tokens=4))
    assert torch.get_num_threads() == 4
    with threads.by_work():
        policy(rollout.sequences).sum().backward()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four")
def test_so_do_passes_that_share_their_prompts():
    encoder = tiny_encoder()
    model, rows = tiny_reward_model(tiny_policy(encoder)), encoder.shared_prompts(comparisons(2))
    with threads.by_work():
        model.shared_prompt_scores(rows)
        assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("four")
def test_an_adapter_leaves_the_number_to_its_base():
    encoder = tiny_encoder()
    policy = gpt2_policy(vocabulary=64, context=32, layers=1, width=512, heads=2, end_of_text=encoder.end_of_text)
    adapted = copy.deepcopy(policy)
    on_shared_base(adapted, ADAPTER)
    adapted = learner(adapted, ADAPTER)
    rows, reads = torch.ones(24, 12, dtype=torch.int64), torch.ones(24, 12, dtype=torch.bool)
    sequences, seen = encoder.demonstrations(demonstrations(24)), []
    for role in (policy, adapted):
        with threads.by_work(), torch.no_grad():
            role(sequences)
            seen.append(torch.get_num_threads())
            Decoder(role, rows, reads)
            seen.append(torch.get_num_threads())
    assert seen == [4, 4, 4, 4]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
@pytest.mark.usefixtures("four")
def test_the_users_number_wins(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with threads.by_work():
        threads.choose(miniature_policy().named_parameters(), 1)
        assert torch.get_num_threads() == 4
    assert threads.described() == f"threads: 4 ({name} 4)"


@pytest.mark.usefixtures("four")
def test_what_rounds_differently_is_recorded(monkeypatch):
    assert rounding()["threads"] == 4
    with threads.by_work():
        threads.choose(miniature_policy().named_parameters(), 1)
        assert rounding()["threads"] == "up to 4"


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize("command", [["doctor"], ["run", "smoke", "--dry-run"]])
def test_doctor_and_the_plan_say_what_is_used(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert cli.main(command) == 0
    assert "threads: 1 to 4, one for each 64 million operations" in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert cli.main(command) == 0
    assert "threads: 4 (OMP_NUM_THREADS 4)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, f"{threads.SPINS} None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_the_command_line_says_how_threads_wait_unless_the_user_does(given, found):
    program = (
        "import os, sys; from instructrl import cli; cli._carry_out = lambda name, words: 0; cli.main(['doctor'])\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    plain = {name: text for name, text in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=plain | given, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == f"{found} False"


def test_a_process_that_has_torch_is_left_alone(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    threads.wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ
