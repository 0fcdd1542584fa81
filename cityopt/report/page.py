"""One study as one HTML file: no network, no other file, light and dark, for a desk, a phone and paper.

Sections come from the modules beside this one; here they get their headings, the style sheet and the script. A content
security policy in the page forbids it to load anything, whatever a name or a message in it may say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cityopt.report.confusion import write_confusion
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, tag, void
from cityopt.report.origin import write_anchors, write_command, write_dataset, write_environment
from cityopt.report.pictures import write_pictures
from cityopt.report.quality import write_class_scores, write_promotion, write_size_scores
from cityopt.report.search_space import write_importance, write_scatters
from cityopt.report.trainings import write_crossval
from cityopt.report.trials import write_curves, write_device_time, write_failures, write_leaderboard
from cityopt.report.verdict import write_head

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Part:
    """A section: its anchor, its heading (what it answers), and what writes it; None leaves it out."""

    name: str
    heading: str
    write: Callable[[Findings], Markup | None]


PARTS = (
    Part("leaderboard", "Which settings scored best?", write_leaderboard),
    Part("settings", "Which settings mattered?", lambda findings: _write_settings(findings)),
    Part("curves", "How did the trials learn?", write_curves),
    Part("outcomes", "Where did the time go, and what failed?", lambda findings: _write_time(findings)),
    Part("promotion", "What did full training bring?", write_promotion),
    Part("folds", "How much does the score depend on the images?", lambda findings: _write_folds(findings)),
    Part("classes", "What does the model find, class by class?", lambda findings: _write_quality(findings)),
    Part("confusion", "Which classes are taken for which?", write_confusion),
    Part("pictures", "What does that look like?", write_pictures),
    Part("anchors", "Do the anchors fit the objects?", write_anchors),
    Part("origin", "What does it stand on?", lambda findings: _write_origin(findings)),
    Part("repeat", "How is it repeated?", write_command),
)


def write_page(findings: Findings) -> str:
    """Return the whole page as HTML."""
    sections = [(part, part.write(findings)) for part in PARTS]
    present = [(part, body) for part, body in sections if body is not None]
    links = [tag("a", part.name.capitalize(), href=f"#{part.name}") for part, _ in present]
    content = [tag("section", tag("h2", part.heading), body, id=part.name) for part, body in present]
    body = tag(
        "body",
        tag("main", write_head(findings), tag("nav", *links, aria_label="Sections"), *content),
        tag("div", "", id="tip", role="tooltip", hidden="hidden"),
        tag("dialog", "", id="lightbox", aria_label="Enlarged picture"),
        tag("script", Markup(_read("page.js"))),
    )
    return f'<!doctype html>\n<html lang="en">{_write_html_head(findings)}{body}</html>\n'


def _write_html_head(findings: Findings) -> Markup:
    return tag(
        "head",
        Markup('<meta charset="utf-8">'),
        void("meta", http_equiv="Content-Security-Policy", content=POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        void("link", rel="icon", href="data:,"),
        tag("title", f"{findings.config.name}: cityopt report"),
        tag("style", Markup(_read("page.css"))),
    )


def _write_settings(findings: Findings) -> Markup:
    heading = tag("h3", "Score against each setting")
    return join([write_importance(findings), heading, write_scatters(findings)])


def _write_folds(findings: Findings) -> Markup | None:
    return write_crossval(findings.crossval, findings.config.search.metric)


def _write_time(findings: Findings) -> Markup:
    return join([write_device_time(findings), tag("h3", "Failures by reason"), write_failures(findings)])


def _write_quality(findings: Findings) -> Markup:
    by_class = tag("div", tag("h3", "By class"), write_class_scores(findings))
    if findings.config.model.task == "semantic":
        return by_class
    return join([by_class, tag("div", tag("h3", "By size"), write_size_scores(findings))])


def _write_origin(findings: Findings) -> Markup:
    data = tag("div", tag("h3", "Dataset"), write_dataset(findings))
    return tag("div", data, tag("div", tag("h3", "Environment"), write_environment(findings)), class_="side-by-side")


@cache
def _read(name: str) -> str:
    return files("cityopt.report").joinpath(name).read_text(encoding="utf-8")
