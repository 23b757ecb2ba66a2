"""Credentials in addresses."""

import pytest

from instructrl.tracking.masking import masked, masked_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/path", "https://***@host/path"),
        ("https://secret@host", "https://***@host"),
        ("https:/me:secret@host/path", "https:/***@host/path"),
        ("https://me:sec@ret@host:8080/a@b", "https://***@host:8080/a@b"),
        ("git+ssh://git:secret@host, s3://key:secret@bucket.", "git+ssh://***@host, s3://***@bucket."),
        ("found 'https://me:secret@host'", "found 'https://***@host'"),
        ("https://host/path?mail=me@host", "https://host/path?mail=me@host"),
        ("https://host#a@b", "https://host#a@b"),
        ("me@host and a: b@c", "me@host and a: b@c"),
        ("hub:name", "hub:name"),
        ("", ""),
    ],
)
def test_what_stands_before_a_host(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown


def test_values_of_any_depth():
    found = masked_values({"a": ("x://u:p@h", 1, None), "b": {"c": ["x://u@h"], "d": 0.5}})
    assert found == {"a": ["x://***@h", 1, None], "b": {"c": ["x://***@h"], "d": 0.5}}
