"""Reads a report as a browser would: its elements, the text of each section, the rows of its tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "line", "circle", "path"}


@dataclass
class Section:
    """One section of the page: all its text, and the cells of every table row."""

    text: str = ""
    rows: list[list[str]] = field(default_factory=list)


class PageReader(HTMLParser):
    """The page's elements with their attributes, and its sections by name; what comes before them is `header`."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, Section] = {"header": Section()}
        self._current = self.sections["header"]
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "an element was never closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._current = self.sections.setdefault(dict(attrs)["id"], Section())
        elif tag == "tr":
            self._current.rows.append([])
        elif tag in ("td", "th"):
            self._current.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if {"style", "script", "title"} & set(self._open):
            return
        self._current.text += data
        if "td" in self._open or "th" in self._open:
            self._current.rows[-1][-1] += data
