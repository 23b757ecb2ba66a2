"""Baselines and sizes of the miniature: prefixes that cannot be used, amounts that make no sense."""

from table import Row, text

_OPTIONS = "--baselines.prefixes prefixes.yaml"

ROWS = [
    Row(
        what="prefixes that are not there",
        step="smoke",
        options="--baselines.prefixes nowhere.yaml",
        message="prefixes nowhere.yaml: found No such file or directory, accepted is a YAML file",
    ),
    Row(
        what="prefixes that are no YAML",
        make=text("prefixes.yaml", "['w1 {prompt}'"),
        step="smoke",
        options=_OPTIONS,
        message="prefixes prefixes.yaml: found no YAML (…), accepted is a list of texts",
    ),
    Row(
        what="prefixes that are no list",
        make=text("prefixes.yaml", "best: 'w1 {prompt}'"),
        step="smoke",
        options=_OPTIONS,
        message="prefixes prefixes.yaml: found {'best': 'w1 {prompt}'}, accepted is a list of texts",
    ),
    Row(
        what="no prefixes in the file",
        make=text("prefixes.yaml", "[]"),
        step="smoke",
        options=_OPTIONS,
        message="prefixes prefixes.yaml: found [], accepted is a list of texts",
    ),
    Row(
        what="prefix without a place for the prompt",
        make=text("prefixes.yaml", "['w1 {prompt}', 'w1']"),
        step="smoke",
        options=_OPTIONS,
        message="prefixes prefixes.yaml, entry 2: found 'w1', accepted is a text with {prompt} once",
    ),
    Row(
        what="prefix with two places for the prompt",
        make=text("prefixes.yaml", "['{prompt} {prompt}']"),
        step="smoke",
        options=_OPTIONS,
        message="prefixes prefixes.yaml, entry 1: found '{prompt} {prompt}', accepted is a text with {prompt} once",
    ),
    Row(
        what="fewer than no examples of a mixture",
        step="smoke",
        options="--baselines.examples -1",
        message="baselines.examples: found -1, accepted are numbers from 0",
    ),
    Row(
        what="learning rates that are not in order",
        step="smoke",
        options="--baselines.lower-lr 0.01",
        message="baselines.lower_lr: found 0.01, accepted is less than higher_lr 0.0006",
    ),
    Row(
        what="size that there is not",
        step="smoke",
        options="--sizes XL",
        message="--sizes: found 'XL', accepted is S or all",
    ),
]
