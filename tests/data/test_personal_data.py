"""Personal data: what is found, what is not, and in what time."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrl.data.personal_data import find_personal_data, is_card_number

FOUND = {
    "email": ["jane.doe+x@mail.example.co.uk", "a_b@example.org", "übung@exämple.de", "x1@sub-domain.example.com"],
    "phone": [
        "212-736-5000",
        "(212) 736-5000",
        "212.736.5000",
        "2127365000",
        "+1 212 736 5000",
        "+44 20 7946 0958",
        "+49 30 901820",
        "1-800-275-2273",
    ],
    # Published test numbers of the card schemes.
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011000990139424", "3530111333300000"],
    "ip_address": ["8.8.8.8", "192.168.1.17", "2001:db8:85a3::8a2e:370:7334", "fe80::1:2"],
    "social_security": ["078-05-1120"],
}
PROSE = [
    "The 1990-1991 season had 1,234,567.89 visitors, of 123 456 789 people.",
    "At 12:30:45 on 2023-01-15 10:30:00 (10/12/2023)",
    "pi is 3.14159265358979 and e 2.718281828459045; version 1.2.3, section 1.2.3.4.5",
    "std::vector<a::b> x = a::b::c; 127.0.0.1 and ::1",
    "ISBN 978-3-16-148410-0, order 5551234567890123456, 100 200 300 400 = 1000",
    "@home a@b me@localhost 4111 1111 1111 1112 000-12-3456",
    "<<48/2=24>>24 48+24=<<48+24=72>>72 #### 72",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
@pytest.mark.parametrize("frame", ["{}", "Ask ({}), please.", "first line\n{}\nlast"])
def test_found_where_it_stands(kind, text, frame):
    sentence = frame.format(text)
    (data,) = find_personal_data(sentence)
    assert (data.kind, sentence[data.start : data.end].strip("()")) == (kind, text.strip("()"))


@pytest.mark.parametrize("text", PROSE)
def test_ordinary_text_has_none(text):
    assert find_personal_data(text) == []


def test_national_numbers_of_another_region():
    text = "ring 020 7946 0958"
    assert find_personal_data(text) == []
    assert [data.kind for data in find_personal_data(text, phone_regions=("US", "GB"))] == ["phone"]


def test_several_in_order_without_overlap():
    text = "a@example.org 8.8.8.8 +1 212 736 5000 a@example.org"
    assert [data.kind for data in find_personal_data(text)] == ["email", "ip_address", "phone", "email"]


@given(st.text(alphabet="0123456789 .-:@ab+()", max_size=60))
def test_spans_are_in_order_and_inside(text):
    found = find_personal_data(text)
    ends = [0, *(data.end for data in found)]
    assert all(end <= data.start < data.end <= len(text) for end, data in zip(ends, found, strict=False))


@given(st.integers(10**14, 10**15 - 1))
def test_luhn_takes_one_last_digit_of_ten(number):
    # Issuer prefix 4 and 16 digits in all; exactly one check digit makes the sum a multiple of ten.
    stem = "4" + str(number)[1:]
    assert sum(is_card_number(f"{stem}{digit}") for digit in range(10)) == 1


@pytest.mark.parametrize("piece", ["1 2 3 ", "1", "a@", "a.", "1.", "1:", "212-736-", "4111 1111 1111 1112 "])
def test_hostile_text_takes_linear_time(piece):
    def seconds(size):
        text = piece * (size // len(piece))
        start = time.process_time()
        find_personal_data(text)
        return time.process_time() - start

    seconds(100)  # imports
    # Eight times the text in quadratic time would take 64 times as long.
    assert seconds(80_000) < 24 * max(seconds(10_000), 0.005)


def test_no_false_alarm_in_school_mathematics(public_data):
    with (public_data("gsm8k") / "test.jsonl").open() as file:
        texts = [text for line in file for text in json.loads(line).values()]
    assert len(texts) == 2 * 1319
    assert [text for text in texts if find_personal_data(text)] == []
