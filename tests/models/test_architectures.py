"""docs/architectures.md says what is found of every family, and no family is refused for want of work."""

import re

import pytest
import transformers
from architectures import FAMILIES, NOT_MADE, PAGE, page, row, rows_of_the_page
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

REFUSALS = (
    "has a recurrent state",
    "states depend on later tokens",
    "is an encoder with a decoder",
    "logits are no projection of its states",
)
(WRITTEN_FOR,) = re.findall(r"transformers (\S+) has \d+ families", PAGE.read_text(encoding="utf-8"))
of_its_version = pytest.mark.skipif(
    transformers.__version__ != WRITTEN_FOR, reason=f"the page is of transformers {WRITTEN_FOR}"
)


@of_its_version
@pytest.mark.parametrize("family", FAMILIES)
def test_the_outcome_is_that_of_the_page(family):
    assert row(family) == rows_of_the_page()[family]


@of_its_version
def test_the_page_has_every_family_and_nothing_typed_by_hand():
    rows = rows_of_the_page()
    assert {*rows, *NOT_MADE} == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(rows) >= 95
    assert PAGE.read_text(encoding="utf-8") == page(rows)


def test_refused_is_only_what_cannot_be_computed_here():
    outcomes = {family: line.split("|")[3].strip() for family, line in rows_of_the_page().items()}
    refused = {family: said for family, said in outcomes.items() if not said.startswith("accepted, ")}
    assert {said for said in refused.values()} <= {f"refused: {reason}" for reason in REFUSALS}
