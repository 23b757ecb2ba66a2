"""What is said and done at a signal, inside of a step that is finished first and outside of one."""

import os
import signal

import pytest

from instructrl import distributed, interruption


def test_a_second_sigint_leaves_at_once():
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.wished()
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(interruption.Interrupted) as caught, interruption.heeded(), interruption.finishing():
        twice()
    assert caught.value.at_once
    assert not interruption.wished()
    distributed.leave_if_wished()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_outside_of_a_step_nothing_is_waited_for(number, capfd):
    """There a signal is not answered with words about a step that is finished and saved."""
    with pytest.raises(interruption.Interrupted) as caught, interruption.heeded():
        os.kill(os.getpid(), number)
    assert caught.value.at_once
    assert caught.value.exit_code == 128 + number
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "hint"),
    [("SIGINT", "another SIGINT (Ctrl-C) stops at once"), ("SIGTERM", "SIGINT (Ctrl-C) stops at once")],
)
def test_what_is_said_at_a_signal(number, hint, capfd):
    with interruption.heeded(), interruption.finishing():
        os.kill(os.getpid(), signal.Signals[number])
    said = f"\n{number}: finishing this step, then saving and stopping; {hint}, without saving\n"
    assert capfd.readouterr().err == said


def test_under_a_launcher_a_second_sigint_is_the_first_come_again(monkeypatch):
    """The terminal sends one to every process, and torchrun passes its own on."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with interruption.heeded():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(interruption.Interrupted):
            distributed.leave_if_wished()
