"""Fixtures of the data tests: a word tokenizer, and the folder of public data sets where there is one."""

from pathlib import Path

import pytest

from instructrl.data.tokenizers import word_tokenizer

PUBLIC_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def tokenizer():
    return word_tokenizer([f"w{number}" for number in range(100)])


@pytest.fixture
def public_data():
    """Function from the name of a data set to its folder."""

    def folder(name: str) -> Path:
        if not (PUBLIC_DATA / name).is_dir():
            pytest.skip(f"the public data set {name} is not beside the repository")
        return PUBLIC_DATA / name

    return folder
