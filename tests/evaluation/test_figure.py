"""The win rates as a file of their own: whole, inert, readable in both colour schemes, the same bytes every time."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from synthetic_run import HOSTILE, MODELS, make_results, write_run

from instructrl import cli
from instructrl.evaluation.report import write_figure, write_report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", make_results())


def texts(root) -> list[str]:
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


def test_it_is_a_document_with_every_model_and_its_rate(folder, tmp_path):
    path = write_figure(folder, tmp_path / "figure.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert root.findtext(f"{SVG}title") == "Win rate against SFT"
    shown = texts(root)
    assert all(name in shown for name in MODELS)
    assert {"12.6%", "54.4%", "Win rate against SFT"} <= set(shown)
    assert "resampling users." in " ".join(shown)


def test_nothing_lies_outside_of_the_card(folder, tmp_path):
    root = ElementTree.parse(write_figure(folder, tmp_path / "figure.svg")).getroot()
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    card, panel = root.find(f"{SVG}rect"), root.find(f"{SVG}svg")
    assert card is not None
    assert panel is not None
    box = {name: float(panel.get(name, 0)) for name in ("x", "y", "width", "height")}
    assert box["x"] > 0
    assert box["x"] + box["width"] < width
    own = [element for element in root.findall(f"{SVG}text")]
    assert all(0 < float(element.get("y", 0)) < height for element in own)
    title, *caption = (float(element.get("y", 0)) for element in own)
    assert title < box["y"]
    assert all(y > box["y"] + box["height"] for y in caption)


def test_it_follows_the_colour_scheme_and_defines_every_colour_twice(folder, tmp_path):
    text = write_figure(folder, tmp_path / "figure.svg").read_text(encoding="utf-8")
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    used = {name for name in re.findall(r"var\(--([\w-]+)\)", text) if name != "sans"}
    assert {"ink", "surface", "grid", "model-0", "model-4"} <= used
    assert all(f"--{name}: #" in light and f"--{name}: #" in dark for name in used)
    assert 'class="card"' in text


def test_it_fetches_and_runs_nothing(tmp_path):
    results = make_results()
    results["run"]["baseline"] = HOSTILE
    results["models"][0]["name"] = HOSTILE
    root = ElementTree.parse(write_figure(write_run(tmp_path, results), tmp_path / "figure.svg")).getroot()
    allowed = {"svg", "title", "style", "rect", "text", "g", "path", "use", "defs", "clipPath"}
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in allowed
        for name, value in element.attrib.items():
            assert not name.lower().startswith("on")
            if name.endswith("href"):
                assert value.startswith("#")
            else:
                assert "url(" not in value or re.fullmatch(r"url\(#\w+\)", value)
    assert HOSTILE in (root.findtext(f"{SVG}title") or "")


def test_the_same_bytes_every_time(folder, tmp_path):
    first = write_figure(folder, tmp_path / "one.svg").read_bytes()
    assert write_figure(folder, tmp_path / "two.svg").read_bytes() == first


def test_the_report_has_the_same_plot(folder, tmp_path):
    """One drawing, so that the README cannot show another one than the page."""
    drawing = re.search(r"<svg viewBox.*?</svg>", write_figure(folder, tmp_path / "f.svg").read_text(), re.DOTALL)
    assert drawing is not None
    assert drawing.group() in write_report(folder).read_text(encoding="utf-8")


def test_what_cannot_be_drawn_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"figure: found '.*\.png', accepted is a path that ends in \.svg"):
        write_figure(folder, tmp_path / "figure.png")
    with pytest.raises(FileNotFoundError, match=r"found no results\.json"):
        write_figure(tmp_path, tmp_path / "figure.svg")
    with pytest.raises(ValueError, match="found no win rates"):
        write_figure(write_run(tmp_path / "empty", {}), tmp_path / "figure.svg")
    assert not (tmp_path / "figure.svg").exists()


def test_the_command_writes_page_and_figure(folder, tmp_path, capsys):
    figure = tmp_path / "figure.svg"
    assert cli.main(["report", str(folder), "--figure", str(figure)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(figure)]
    assert figure.read_bytes() == write_figure(folder, tmp_path / "other.svg").read_bytes()
    assert cli.main(["report", str(folder), "--figure", "figure.png"]) == 2
    assert "accepted is a path that ends in .svg" in capsys.readouterr().err
