"""Importing this installs the adapter of verl, for hosts that are told the names of modules.

VERL_USE_EXTERNAL_MODULES=instructrl.integrations.verl_install
"""

from instructrl.integrations import verl

verl.install()
