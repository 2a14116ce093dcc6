"""A matplotlib figure as SVG within a page: its colours are the page's, so that they follow light, dark and print.

matplotlib draws in colours that stand for roles (`INK`, `SERIES` …), which are replaced by CSS variables; its fonts
give way to the page's. What it writes for a file of its own, which would work on the whole page, is taken out: style
sheet, metadata, ids. Equal figures give equal bytes.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission.report_html import Html, escaped

SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"

# No two alike, and none that anybody would draw in.
INK, QUIET, GRID, PAPER, TARGET, BAND = (f"#0100{number:02x}" for number in range(6))
BLACK, WHITE, BOARD = (f"#0400{number:02x}" for number in range(3))  # of Go
SERIES = tuple(f"#0200{number:02x}" for number in range(7))
PHASES = tuple(f"#0300{number:02x}" for number in range(4))
VARIABLES = {
    INK: "ink",
    QUIET: "quiet",
    GRID: "grid",
    PAPER: "paper",
    TARGET: "target",
    BAND: "band",
    BLACK: "black",
    WHITE: "white",
    BOARD: "board",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)},
    **{colour: f"phase-{number}" for number, colour in enumerate(PHASES, 1)},
}
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text, for readers aloud and for searching
    "svg.hashsalt": "mlperf_fast",
    "text.parse_math": False,  # a name from a log may hold $
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that sizes are the same everywhere
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "axes.axisbelow": True,
}


def require_matplotlib() -> None:
    """UserError that says how to get it where it isn't installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the report's pictures are drawn by matplotlib, which can't be imported ({error}): "
            "get it with `pip install 'mlperf_fast[report]'`"
        ) from None


def drawing() -> Any:
    """A context in which figures are drawn in the page's colours and sizes."""
    import matplotlib

    return matplotlib.rc_context(SETTINGS)


def inline(figure: Any, name: str, label: str) -> Html:
    """The figure as an `svg` element. name: of the picture, no other of the page has it. label: what it shows, for who
    can't see it."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # The page's fonts draw the text; that matplotlib's lacks a letter changes nothing.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for part in ("metadata", "defs"):
        for found in root.findall(f"{{{SVG}}}{part}"):
            if part == "metadata" or found.find(f"{{{SVG}}}style") is not None:
                root.remove(found)
    _rename(root, name)
    for node in root.iter():
        node.tag = node.tag.removeprefix(f"{{{SVG}}}")
        for attribute in ("style", "fill", "stroke"):
            if attribute in node.attrib:
                node.set(attribute, _themed(node.attrib[attribute]))
        if node.attrib.get("transform", "").startswith("rotate(-0 "):
            del node.attrib["transform"]
        if "d" in node.attrib:
            node.set("d", " ".join(node.attrib["d"].split()))
    view = root.attrib["viewBox"]
    width = float(view.split()[2])
    root.attrib.clear()
    start = (
        f'<svg class="picture" role="img" viewBox="{view}" style="max-width:{width:g}px" aria-label="{escaped(label)}">'
    )
    inner = "".join(ElementTree.tostring(node, encoding="unicode") for node in root)
    return Html(start + re.sub(r">\s+<", "><", inner) + "</svg>")


def _rename(root: Any, name: str) -> None:
    """Ids that something refers to become this picture's own; the others go."""
    used = set()
    for node in root.iter():
        if _HREF in node.attrib:
            node.set("href", node.attrib.pop(_HREF))
        for key, value in list(node.attrib.items()):
            target = re.fullmatch(r"#(.+)", value) if key == "href" else re.fullmatch(r"url\(#(.+)\)", value)
            if target:
                used.add(target[1])
                node.set(key, value.replace(target[1], f"{name}-{target[1]}"))
    for node in root.iter():
        given = node.attrib.pop("id", None)
        if given in used:
            node.set("id", f"{name}-{given}")


def _themed(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;]*", _font, style)  # older versions, and bold text
    return re.sub(r"#0[1234]00[0-9a-f]{2}", lambda match: f"var(--{VARIABLES[match[0]]})", style)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + (f"; font-weight: {match[1]}" if match[1] else "")
