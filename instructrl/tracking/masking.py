"""Credentials in what is written or said."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
# What stands before the last @ of an address's authority (RFC 3986, 3.2.1). A path has lost one of the slashes.
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/?#\s]*@")


def masked(text: str) -> str:
    """A text in which `https://user:password@host` is `https://***@host`."""
    return _CREDENTIALS.sub(rf"\1{MASK}@", text)


def masked_values(value: Any) -> Any:
    """The same of every text in mappings and lists; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: masked_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(item) for item in value]
    return masked(value) if isinstance(value, str) else value
