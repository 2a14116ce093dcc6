"""HTML from text that may be hostile: whatever isn't `Html` already is escaped, so that a log can't write markup.

There is one way to make `Html`, `element`; names of elements and attributes are always ours.
"""

import html
import os
from collections.abc import Sequence

from mlperf_fast.submission.tables import printable

_VOID = {"meta", "br", "hr", "col"}


class Html(str):
    """Markup that was made here. Joining and formatting give plain text again, which would be escaped."""

    __slots__ = ()


def element(name: str, /, *children: "str | Html | None", **attributes: str | int | bool | None) -> Html:
    """`<name attribute="value">children</name>`, texts and values escaped.

    children: None is left out. attributes: `class_` is class, `aria_label` is aria-label; True has no value, False and
    None are left out.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escaped(str(value))}"')
    parts.append(">")
    if name not in _VOID:
        parts += [text(child) for child in children if child is not None]
        parts.append(f"</{name}>")
    return Html("".join(parts))


def text(content: str | Html) -> Html:
    """A text as markup that shows it; markup as it is."""
    return content if isinstance(content, Html) else Html(escaped(content))


def joined(*parts: str | Html | None) -> Html:
    """Several, one after the other."""
    return Html("".join(text(part) for part in parts if part is not None))


def escaped(content: str | os.PathLike[str]) -> str:
    """On one line, without control characters and broken encodings, and nothing that HTML reads as markup."""
    return html.escape(printable(content))


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str | Html]], numbers_from: int, class_: str = ""
) -> Html:
    """A table with its caption; the first cell of a row is its heading, cells from `numbers_from` on are figures.

    It scrolls sideways in a box of its own, which the keyboard can reach, rather than make the page wide.
    """

    def look(i: int) -> str | None:
        return "number" if i >= numbers_from else None

    head = [element("th", column, scope="col", class_=look(i)) for i, column in enumerate(columns)]
    body = []
    for row in rows:
        cells = [element("td", cell, class_=look(i)) for i, cell in enumerate(row)]
        cells[0] = element("th", row[0], scope="row")
        body.append(element("tr", *cells))
    parts = (element("caption", caption), element("thead", element("tr", *head)), element("tbody", *body))
    whole = element("table", *parts, class_=class_ or None)
    return element("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def badge(passes: bool) -> Html:
    """A verdict, by a sign and a word, not by colour alone."""
    return element("span", "✓ passes" if passes else "✗ fails", class_=f"badge {'good' if passes else 'bad'}")


def pictured(title: str, caption: str, picture: Html) -> Html:
    """A picture under its title, and how to read it."""
    return element("figure", element("figcaption", element("strong", title), caption), picture)


def counted(number: int, thing: str) -> str:
    """So many of a thing."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
