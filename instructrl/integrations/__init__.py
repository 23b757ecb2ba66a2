"""Adapters: what installs the operations of this package into other people's trainers.

    from instructrl.integrations import trl
    trl.install()

One module a host, or a package. Importing one changes nothing, and nothing of the package imports one. Those of TRL
also have the trainers that it had.
"""

HOSTS = ("liger", "nemo_rl", "openrlhf", "torchtune", "transformers", "trl", "verl")
