"""How every plot looks: panels of one width, colours that the page's style sheet sets, bytes that depend on data alone.

Matplotlib draws with placeholder colours; the SVG then refers to the page's CSS variables, so one drawing serves the
light and the dark scheme. Text stays text, in the page's font.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Placeholders: no colour map or default of matplotlib produces these values.
INK, MUTED, GRID, ACCENT, SURFACE = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", SURFACE: "surface"}

# The paper's models keep their colour in every report; others take the free ones in order of appearance.
KNOWN_MODELS = ("GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx", "PPO start")
NUM_MODEL_COLOURS = 10
MODEL_COLOURS = tuple(f"#0102{16 + index:02x}" for index in range(NUM_MODEL_COLOURS))
_VARIABLES |= {colour: f"model-{index}" for index, colour in enumerate(MODEL_COLOURS)}

POINTS_AN_INCH = 72  # of matplotlib's SVG: one point is one user unit, one CSS pixel at the panel's natural width
PANEL_WIDTH = 360
LABEL = 24  # characters of a label's line

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # measures the text; the browser draws it in the page's font
    "font.size": 11.5,
    "text.parse_math": False,  # names may hold dollar signs
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 11.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
}


def model_indices(names: Iterable[str]) -> dict[str, int]:
    """Which colour each model has: the known ones theirs, the others what is left, then the last one again."""
    indices = {}
    free = len(KNOWN_MODELS)
    for name in names:
        if name in KNOWN_MODELS:
            indices[name] = KNOWN_MODELS.index(name)
        elif name not in indices:
            indices[name] = min(free, NUM_MODEL_COLOURS - 1)
            free += 1
    return indices


_GROUPS_OF_LOOK = {
    "axes",
    "axes3d",
    "errorbar",
    "figure",
    "font",
    "grid",
    "hatch",
    "lines",
    "markers",
    "patch",
    "path",
} | {
    "savefig",
    "svg",
    "text",
    "xtick",
    "ytick",
}


def draw(
    paint: Callable[[Axes], None], *, name: str, description: str, height: int, width: int = PANEL_WIDTH
) -> Markup:
    """What `paint` draws on a pair of axes, as an `<svg>` element for an HTML page.

    name: unique on the page; it salts the ids of markers and clips. description: what a screen reader says.
    height, width: CSS pixels at the natural size; the page scales the drawing with its column.
    """
    # Matplotlib's own defaults with ours on top, so that a user's matplotlibrc does not change a report.
    defaults: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    look = {key: value for key, value in defaults.items() if key.split(".")[0] in _GROUPS_OF_LOOK}
    look |= _SETTINGS | {"svg.hashsalt": _encodable(name)}
    with matplotlib.rc_context(look), warnings.catch_warnings():
        # The browser draws the text: what matplotlib's own font lacks is of no consequence.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width / POINTS_AN_INCH, height / POINTS_AN_INCH), layout="constrained")
        figure.set_layout_engine("constrained", w_pad=3 / POINTS_AN_INCH, h_pad=3 / POINTS_AN_INCH)
        canvas = FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        # The figure's own `savefig` draws all of it once more, before, for formats that are not laid out as they draw.
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Markup(_for_html(buffer.getvalue(), description, width, height))


def shorten(text: str, limit: int = LABEL) -> str:
    """A label that leaves room for the plot."""
    return _encodable(text if len(text) <= limit else text[: limit - 1].rstrip() + "…")


def _encodable(text: str) -> str:
    """Matplotlib writes UTF-8, in which a lone surrogate, as the name of a file can have one, is no character."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _for_html(svg: str, description: str, width: int, height: int) -> str:
    """The drawing without what belongs to a file of its own: prologue, style, namespaces, ids that others have too."""
    body = svg[svg.index(">", svg.index("<svg ")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda match: _rewrite_tag(match.group()), body)
    body = re.sub(r">\s*\n\s*<", ">\n<", body).strip()
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
    return f"{opening}\n{body}\n</svg>"


def _rewrite_tag(tag: str) -> str:
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]*", _font, tag)  # matplotlib before 3.10 writes the shorthand
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    return re.sub(r"#[0-9a-f]{6}", _css_colour, tag)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 700; " if re.search(r"bold|[67]00", match.group(1)) else ""
    return f"{weight}font-size: {match.group(2)}px"


def _css_colour(match: re.Match[str]) -> str:
    colour = match.group()
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
