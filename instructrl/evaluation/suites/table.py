"""The suites by name."""

from collections.abc import Mapping

from instructrl.evaluation.suites.protocol import Suite

SUITES: Mapping[str, Suite] = {}
