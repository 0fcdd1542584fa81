"""One study as one HTML file: sections come from the modules beside this one; here they get their headings."""

from collections.abc import Callable
from dataclasses import dataclass

from cityopt.report.confusion import write_confusion
from cityopt.report.document import write_document
from cityopt.report.evidence import write_evidence
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, tag
from cityopt.report.memory_edge import write_memory_edge
from cityopt.report.origin import write_anchors, write_command, write_dataset, write_environment
from cityopt.report.pictures import write_pictures
from cityopt.report.quality import write_class_scores, write_promotion, write_size_scores
from cityopt.report.search_space import write_importance, write_scatters
from cityopt.report.trainings import write_crossval
from cityopt.report.trials import write_curves, write_device_time, write_failures, write_leaderboard
from cityopt.report.verdict import write_head


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
    Part("evidence", "Why this one?", write_evidence),
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
    written = [(part.name, part.heading, part.write(findings)) for part in PARTS]
    sections = [(name, heading, body) for name, heading, body in written if body is not None]
    return write_document(f"{findings.config.name}: cityopt report", write_head(findings), sections)


def _write_settings(findings: Findings) -> Markup:
    heading = tag("h3", "Score against each setting")
    return join([write_importance(findings), heading, write_scatters(findings)])


def _write_folds(findings: Findings) -> Markup | None:
    return write_crossval(findings.crossval, findings.config.search.metric)


def _write_time(findings: Findings) -> Markup:
    parts = [write_device_time(findings), tag("h3", "Failures by reason"), write_failures(findings)]
    if edge := write_memory_edge(findings):
        parts += [tag("h3", "Where memory ended"), edge]
    return join(parts)


def _write_quality(findings: Findings) -> Markup:
    by_class = tag("div", tag("h3", "By class"), write_class_scores(findings))
    if findings.config.model.task == "semantic":
        return by_class
    return join([by_class, tag("div", tag("h3", "By size"), write_size_scores(findings))])


def _write_origin(findings: Findings) -> Markup:
    data = tag("div", tag("h3", "Dataset"), write_dataset(findings))
    return tag("div", data, tag("div", tag("h3", "Environment"), write_environment(findings)), class_="side-by-side")
