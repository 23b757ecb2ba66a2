"""How numbers are read from results and written for people: missing and non-finite ones are None, then a dash."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"  # noqa: RUF001 between the ends of an interval, and where a value is missing
MINUS = "−"  # noqa: RUF001


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval; `low` and `high` are None together."""

    value: float
    low: float | None
    high: float | None


def beyond(interval: Estimate | None, reference: float) -> int:
    """1 where all of an interval lies above the reference, -1 where all of it lies below, 0 where it holds it or where
    there is no interval: then nothing may be said of the difference."""
    if interval is None or interval.low is None or interval.high is None:
        return 0
    return (interval.low > reference) - (interval.high < reference)


def finite(value: Any) -> float | None:
    """The number, or None for what is absent, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def estimate(record: Any) -> Estimate | None:
    """`{"rate" or "mean", "low", "high"}` as an Estimate; None where there is no value."""
    if not isinstance(record, Mapping):
        return None
    value = finite(record.get("rate", record.get("mean")))
    if value is None:
        return None
    low, high = finite(record.get("low")), finite(record.get("high"))
    if low is None or high is None:
        low = high = None
    return Estimate(value=value, low=low, high=high)


def decimal(value: Any, digits: int = 2) -> str:
    """`1,234.50`, with a true minus sign, or a dash."""
    number = finite(value)
    if number is None:
        return DASH
    text = f"{number:,.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text.replace("-", MINUS)


def percent(value: Any, digits: int = 1) -> str:
    """`57.3%` of a fraction, or a dash."""
    number = finite(value)
    return DASH if number is None else f"{decimal(100 * number, digits)}%"


def count(value: Any) -> str:
    """`12,725`, or a dash."""
    return decimal(value, 0)


def percent_range(interval: Estimate, between: str = " to ") -> str:
    """`55.1 to 59.5%`, or nothing where there is no interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{decimal(100 * interval.low, 1)}{between}{percent(interval.high)}"


def decimal_range(interval: Estimate, between: str = " to ", digits: int = 2) -> str:
    """`4.51 to 4.83`, or nothing where there is no interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{decimal(interval.low, digits)}{between}{decimal(interval.high, digits)}"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def label(name: str) -> str:
    """`fails_instruction` as a person would write it: `Fails instruction`."""
    words = " ".join(
        word.upper() if word in {"qa", "kl", "rm", "ppo", "sft"} else word for word in name.replace("_", " ").split()
    )
    return words[:1].upper() + words[1:]


def spelled(number: int) -> str:
    """Small numbers as words, for the start of a sentence."""
    words = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[number] if number < len(words) else count(number)


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def visible(text: Any) -> str:
    """Control characters as their pictures (U+2400 and up), so that they show and do nothing; tab and newline stay.

    What reorders the text around it (embeddings and overrides, U+202A to U+202E) shows as a replacement character.
    """
    characters = str(text).replace("\r\n", "\n")
    return "".join(_picture(character) for character in characters)


def _picture(character: str) -> str:
    code = ord(character)
    if 0x202A <= code <= 0x202E:
        return "\ufffd"
    if character in "\n\t" or 0x20 <= code < 0x7F or code > 0x9F:
        return character
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"
