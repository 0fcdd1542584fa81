"""One self-contained HTML document: no network, no other file, light and dark, for a desk, a phone and paper.

The reports put their sections into it. A content security policy in the page forbids it to load anything, whatever a
name or a message in it may say.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from cityopt.report.markup import Markup, tag, void

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

Section = tuple[str, str, Markup]
"""Its anchor, its heading (what it answers), and its content."""


def write_document(title: str, head: Markup, sections: Sequence[Section]) -> str:
    """Return a page as HTML: the head, links to the sections, and these."""
    links = [tag("a", name.capitalize(), href=f"#{name}") for name, _, _ in sections]
    content = [tag("section", tag("h2", heading), body, id=name) for name, heading, body in sections]
    body = tag(
        "body",
        tag("main", head, tag("nav", *links, aria_label="Sections"), *content),
        tag("div", "", id="tip", role="tooltip", hidden="hidden"),
        tag("dialog", "", id="lightbox", aria_label="Enlarged picture"),
        tag("script", Markup(_read("page.js"))),
    )
    return f'<!doctype html>\n<html lang="en">{_write_html_head(title)}{body}</html>\n'


def _write_html_head(title: str) -> Markup:
    return tag(
        "head",
        Markup('<meta charset="utf-8">'),
        void("meta", http_equiv="Content-Security-Policy", content=POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        void("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(_read("page.css"))),
    )


@cache
def _read(name: str) -> str:
    return files("cityopt.report").joinpath(name).read_text(encoding="utf-8")
