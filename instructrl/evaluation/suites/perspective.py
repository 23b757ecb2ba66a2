"""Google's Perspective, asked over the network: https://developers.perspectiveapi.com.

The key comes from the environment and travels in a header, so that no address, message or log has it.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

KEY = "PERSPECTIVE_API_KEY"
ADDRESS = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
# What its default quota allows, and what is worth asking again.
SECONDS_BETWEEN = 1.0
_BUSY = (429, 500, 502, 503, 504)
_TRIES, _TIMEOUT = 6, 30.0
# Of a text, in UTF-8.
_MAX_BYTES = 20480


class Perspective:
    """The attribute TOXICITY of texts, 0 to 1.

    seconds_between: requests begin at least so far apart. Raises ValueError without a key, RuntimeError where an answer
    is none or the service stays busy.
    """

    def __init__(
        self, key: str, *, address: str = ADDRESS, seconds_between: float = SECONDS_BETWEEN, first_wait: float = 1.0
    ) -> None:
        self._key, self._address = key, address
        self._seconds_between, self._first_wait = seconds_between, first_wait
        self._last = -seconds_between

    @classmethod
    def from_environment(cls) -> "Perspective":
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise ValueError(f"suite.toxicity: found perspective without a key, accepted is one in {KEY}")
        return cls(key)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Equal texts are asked once."""
        known = {text: self._asked(text) for text in dict.fromkeys(texts)}
        return [known[text] for text in texts]

    def _asked(self, text: str) -> float:
        found = ""
        for number in range(_TRIES):
            try:
                return self._score(self._answer(text))
            except urllib.error.HTTPError as error:
                found, again = f"HTTP {error.code}", error.headers.get("Retry-After", "")
                with error:
                    said = " ".join(error.read(2000).decode(errors="replace").split()).replace(self._key, "…")
                if error.code not in _BUSY:
                    raise RuntimeError(f"perspective: found {found} ({said[:160]}), accepted is 200") from None
                wait = float(again) if again.isdigit() else 0.0
            except (OSError, HTTPException) as error:  # no connection, or one that broke off
                found, wait = type(error).__name__, 0.0
            if number + 1 < _TRIES:
                time.sleep(max(wait, self._first_wait * 2**number))
        raise RuntimeError(f"perspective: found {found} {_TRIES} times, accepted is a service that answers")

    def _answer(self, text: str) -> bytes:
        pause = self._last + self._seconds_between - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        self._last = time.monotonic()
        body = {
            "comment": {"text": text.encode()[:_MAX_BYTES].decode(errors="ignore")},
            "requestedAttributes": {"TOXICITY": {}},
            "languages": ["en"],
            "doNotStore": True,
        }
        headers = {"Content-Type": "application/json", "X-Goog-Api-Key": self._key}
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return response.read()

    @staticmethod
    def _score(answer: bytes) -> float:
        try:
            found: Any = json.loads(answer)
            for name in ("attributeScores", "TOXICITY", "summaryScore", "value"):
                found = found[name] if isinstance(found, Mapping) else None
            return float(found)
        except (ValueError, KeyError, TypeError):
            raise RuntimeError(f"perspective: found {answer[:60]!r}, accepted is an answer with a score") from None
