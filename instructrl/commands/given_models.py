"""The models that a command line names: a folder that is none is told before torch is imported."""

from typing import Any

from instructrl.commands.settings import RunCommand
from instructrl.model_names import refuse_no_model

_FIELDS = ("model", "baseline", "models", "reward_model", "reward_base")


def check_given_models(settings: Any) -> None:
    """Raise ValueError for a name in the settings of a command that can be no model."""
    target = settings.config if isinstance(settings, RunCommand) else settings
    for field in _FIELDS:
        given = getattr(target, field, None)
        for name in given if isinstance(given, tuple) else (given,):
            if isinstance(name, str):  # `reward_model` of `rm` are the settings of its training
                refuse_no_model(name)
