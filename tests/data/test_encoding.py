"""Texts to tensors: what is refused before anything is trained."""

import pytest
from tiny import tiny_encoder


def test_the_first_prompt_over_the_limit_is_named():
    encoder = tiny_encoder(max_prompt_tokens=2)
    encoder.check_prompts("mine:{}".format, ["w1 w2", "w3"])
    with pytest.raises(ValueError, match="mine:1: found a prompt of more than 2 tokens, accepted are up to 2"):
        encoder.check_prompts("mine:{}".format, ["w1 w2", "w1 w2 w3", "w1 w2 w3"])
