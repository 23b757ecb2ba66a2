"""The pages of the documentation, and what is in them."""

import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BAD_INPUT = "docs/bad_input.md"
_PLACES = ("README.md", "CONTRIBUTING.md", "csrc/README.md", "kernels/README.md", "docs/**/*.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for place in _PLACES for path in ROOT.glob(place))


def read(page: str) -> str:
    """page: relative to the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks in a language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[tuple[str, str]]:
    """(path relative to the repository, anchor) of each link and picture that stays in the repository."""
    text = re.sub(r"(`+).+?\1", "", without_code(read(page)))
    targets = [a or b for a, b in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)]
    pairs = [target.partition("#")[::2] for target in targets if "://" not in target]
    folder = (ROOT / page).parent
    return [(str((folder / path if path else ROOT / page).resolve().relative_to(ROOT)), at) for path, at in pairs]


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(read(page)), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        found.add(next(name for n in itertools.count() if (name := f"{plain}-{n}" if n else plain) not in found))
    return found
