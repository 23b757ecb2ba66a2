"""The list of slow tests: what it names is there, it marks that and nothing beside it, and `make test` runs it all."""

import re
from pathlib import Path

import pytest
import slow_tests

TESTS = Path(__file__).parent


@pytest.mark.parametrize("place", slow_tests.SLOW)
def test_what_is_listed_is_there(place):
    path, _, function = place.partition("::")
    assert (TESTS / path).exists()
    assert not function or f"\ndef {function}(" in (TESTS / path).read_text(encoding="utf-8")


def test_a_folder_a_file_and_a_function_are_slow_and_nothing_like_them(monkeypatch):
    monkeypatch.setattr(slow_tests, "SLOW", ("jobs", "runs/test_a.py", "test_b.py::test_one"))
    slow = ("jobs/test_x.py::test_y", "runs/test_a.py::test_y", "test_b.py::test_one")
    others = ("jobs_too/test_x.py::test_y", "runs/test_a2.py::test_y", "test_b.py::test_one_more", "test_b.py::test")
    assert [slow_tests.is_slow(place) for place in (*slow, *others)] == [True] * 3 + [False] * 4


def test_a_test_is_marked_where_it_is_listed(request):
    collected = {item.nodeid: item.get_closest_marker("slow") is not None for item in request.session.items}
    for name, marked in collected.items():
        assert marked == slow_tests.is_slow(name.split("[")[0].removeprefix("tests/")), name


def test_all_tests_leaves_nothing_out():
    makefile = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    (options,) = re.findall(r"^PYTEST := .* -m pytest (.*)$", makefile, flags=re.M)
    (recipe,) = re.findall(r"^test:.*\n\t(.*)$", makefile, flags=re.M)
    assert recipe == "$(PYTEST)"
    assert not {"-m", "-k", "--ignore", "--deselect"} & set(options.split())
