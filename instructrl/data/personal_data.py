"""Finding personal data in text, offline: e-mail addresses, phone numbers, payment cards, IP addresses, US social
security numbers.

What has a form that can be checked is checked: phone numbers against the numbering plans in `phonenumbers` (Google's
libphonenumber), cards against their issuer prefixes and the Luhn sum, IP addresses by `ipaddress`. Names and street
addresses have no such form and are not found. presidio-analyzer was tried and left: it installs 390 MB with spaCy and
its current release wants Python 3.11.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@])")
CARD = re.compile(r"(?<![\w.,$-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
ISSUER = re.compile(
    r"4(\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(011|4[4-9]\d|5\d\d)\d{12}|35\d{14}|3[068]\d{12}"
)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*\d)[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?::{2})?(?![\w:])")
SOCIAL_SECURITY = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
PHONE_DIGITS = re.compile(r"(?:\d[^\w\n]{0,3}){6}\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalData:
    """Where `text[start:end]` is personal data of a kind: email, phone, card, ip_address, social_security."""

    kind: str
    start: int
    end: int


def find_personal_data(text: str, *, phone_regions: Sequence[str] = ("US",)) -> list[PersonalData]:
    """The personal data in a text, in the order of the text, without overlaps.

    phone_regions: countries (ISO 3166, two letters) whose national way of writing phone numbers is searched for;
    numbers with a leading + are found whatever their country. Each further region costs time and false alarms.
    """
    found: list[PersonalData] = []
    for kind, matches in _kinds(text, phone_regions):
        for start, end in matches:
            if all(end <= other.start or start >= other.end for other in found):
                found.append(PersonalData(kind=kind, start=start, end=end))
    return sorted(found, key=lambda data: data.start)


def check_regions(phone_regions: Sequence[str]) -> None:
    """Raise ValueError for a country that is not known: none of its numbers would be found."""
    import phonenumbers

    for region in phone_regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"phone_regions: found {region!r}, accepted are countries by two letters (ISO 3166)")


def _kinds(text: str, phone_regions: Sequence[str]) -> Iterator[tuple[str, Iterator[tuple[int, int]]]]:
    """Each kind with its spans; what is checked more strictly comes first and wins an overlap."""
    if "@" in text:
        yield "email", (match.span() for match in EMAIL.finditer(text))
    yield "card", (match.span() for match in CARD.finditer(text) if is_card_number(match[0]))
    yield "social_security", (match.span() for match in SOCIAL_SECURITY.finditer(text))
    yield "ip_address", (match.span() for match in IPV4.finditer(text) if _is_ip_address(match[0]))
    yield "ip_address", (match.span() for match in IPV6.finditer(text) if _is_ip_address(match[0]))
    # The matcher is slow and most texts have no seven digits in a row.
    if PHONE_DIGITS.search(text):
        for region in phone_regions:
            yield "phone", _phone_numbers(text, region)


def _phone_numbers(text: str, region: str) -> Iterator[tuple[int, int]]:
    import phonenumbers  # here, since importing it takes longer than the rest of this package's data code

    # STRICT_GROUPING wants the digits grouped as people write phone numbers: sums of money and populations are not.
    matcher = phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING)
    return ((match.start, match.end) for match in matcher)


def is_card_number(text: str) -> bool:
    """Whether digits (spaces and dashes aside) are a payment card number: a known issuer's prefix, and a Luhn sum."""
    digits = re.sub(r"[ -]", "", text)
    if not ISSUER.fullmatch(digits):
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_ip_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # Everybody's own machine is nobody's address.
    return not address.is_loopback and not address.is_unspecified
