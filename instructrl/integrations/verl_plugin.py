"""The entry point of the group `verl.plugins`. verl imports all of the group unless it is told their names, so this
does nothing but where it is named:

VERL_USE_EXTERNAL_PLUGINS=instructrl
"""

import importlib
import os

NAME = "instructrl"

if NAME in [name.strip() for name in os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "").lower().split(",")]:
    importlib.import_module("instructrl.integrations.verl_install")
