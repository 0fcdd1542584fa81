"""A transfer study as one HTML file: what models of COCO are worth on Cityscapes, and whose boundaries fit better."""

import base64
import math
from collections.abc import Sequence

from cityopt.evaluation.class_maps import RIDER_RULE
from cityopt.evaluation.close_ups import CloseUp
from cityopt.evaluation.paired import MIN_IMAGES
from cityopt.report.document import Section, write_document
from cityopt.report.markup import Markup, join, signed, tag, void
from cityopt.report.tables import format_value
from cityopt.report.transfer_charts import draw_classes, draw_drops, name_marks
from cityopt.report.transfer_tables import (
    GROUNDS,
    MEASURES,
    Drop,
    Row,
    describe_conditions,
    describe_ground,
    list_classes,
    list_drops,
    list_scores,
    list_warnings,
)
from cityopt.training.transfer_study import STREETS, Comparison, Ground, TransferStudy

_KINDS = {
    "gain": "Most gained by {second}",
    "middle": "In the middle of all objects that both found",
    "loss": "Least gained, or lost, by {second}",
}
_BY_CLASS = {
    "cityscapes/ap": "Cityscapes AP",
    "cityscapes/ap50": "Cityscapes AP50",
    "coco/segm/ap": "COCO mask AP",
    "boundary/segm/ap": "Boundary mask AP",
}
BOUNDARY_NOTE = (
    "Boundary AP on Cityscapes is COCO’s protocol with an edge .005 of the diagonal wide; Cheng et al. put that edge "
    "into Cityscapes’ own protocol, so it is not comparable with published Cityscapes boundary AP."
)


def write_transfer_page(study: TransferStudy, *, command: str) -> str:
    """Return the page; `command` repeats the study."""
    written = [
        ("scores", "How good are the models?", _write_scores(study)),
        ("classes", "What do they find in streets, class by class?", _write_classes(study)),
        ("drop", "What is lost from COCO to Cityscapes?", _write_drops(study)),
        ("boundaries", "Whose boundaries fit better?", _write_comparisons(study)),
        ("pictures", "What does that look like?", _write_pictures(study)),
        ("speed", "How fast are they?", _write_speed(study)),
        ("origin", "What does it stand on?", _write_origin(study)),
        ("repeat", "How is it repeated?", tag("pre", command)),
    ]
    sections: list[Section] = [(name, heading, body) for name, heading, body in written if body is not None]
    return write_document("cityopt transfer", _write_head(study), sections)


def _write_head(study: TransferStudy) -> Markup:
    headline, detail = reach_verdict(study)
    warning = " ".join(list_warnings(study))
    grounds = "; ".join(describe_ground(ground) for ground in study.grounds)
    return tag(
        "header",
        tag("p", "cityopt transfer · ", tag("strong", ", ".join(x.label for x in study.subjects)), class_="eyebrow"),
        tag("h1", headline),
        tag("p", detail, class_="lead"),
        tag("p", f"Judged on {grounds}.", class_="note"),
        tag("p", tag("strong", warning), class_="note") if warning else "",
    )


def reach_verdict(study: TransferStudy) -> tuple[str, str]:
    """Return what came out in a headline and a sentence."""
    ground = study.grounds[0]
    metric, protocol = ("cityscapes/ap", "Cityscapes AP") if ground.key == STREETS else ("coco/segm/ap", "COCO mask AP")
    scores = [(x.label, x.judged[ground.key].metrics[metric]) for x in study.subjects if ground.key in x.judged]
    said = ", ".join(f"{label} {format_value(None if math.isnan(score) else score)}" for label, score in scores)
    detail = f"{protocol} on {GROUNDS[ground.key]} {ground.split}, without training there: {said}."
    found = [x for x in study.comparisons if x.measure == "boundary_iou" and x.ground == study.comparisons[0].ground]
    if not found:
        return f"{study.subjects[0].label} on {GROUNDS[ground.key]}, as it is", detail
    headline, *others = map(_compare_boundaries, found)
    return headline, " ".join([detail, *(f"{other}." for other in others)])


def _compare_boundaries(comparison: Comparison) -> str:
    found, first, second = comparison.found, comparison.first, comparison.second
    if not found.num_images:
        return f"{second} and {first} found no object in common, so their boundaries cannot be compared"
    verdict = {"better": "fit better than", "worse": "fit worse than", "undecided": "cannot be told apart from"}
    few = ""
    if found.num_images < MIN_IMAGES:
        few = f", and {found.num_images} images are too few to decide anything (under {MIN_IMAGES})"
    return (
        f"{second}’s boundaries {verdict[found.verdict]} {first}’s: "
        f"{signed(found.difference)} boundary IoU on the objects that both found{few}"
    )


def _write_scores(study: TransferStudy) -> Markup:
    tables = [_write_table(study, describe_ground(x), list_scores(study, x)) for x in study.grounds]
    return tag("div", *tables, class_="side-by-side")


def _write_classes(study: TransferStudy) -> Markup | None:
    ground = _find_ground(study, STREETS)
    if ground is None:
        return None
    parts, labels = [], [subject.label for subject in study.subjects]
    for metric, label in _BY_CLASS.items():
        rows = list_classes(study, ground, metric)
        parts.append(_write_table(study, f"{label} by class", rows))
        if any(value is not None for row in rows for value in row.values):
            caption = tag("figcaption", name_marks(labels))
            parts.append(tag("figure", draw_classes(rows, labels, label), caption))
    note = f"A dash: the images hold nothing of that class to find. {BOUNDARY_NOTE}"
    if any(subject.knows_coco for subject in study.subjects):
        note += f" COCO has no rider, so a model of COCO finds none. The extra with guessed riders: {RIDER_RULE}."
    return join([tag("div", *parts, class_="side-by-side"), tag("p", note, class_="note")])


def _write_drops(study: TransferStudy) -> Markup | None:
    parts = []
    for subject in study.subjects:
        if drops := list_drops(subject):
            parts.append(
                tag("div", tag("h3", subject.label), draw_drops(drops, subject.label), _list_drops(drops, "mask"))
            )
            parts.append(
                tag("div", tag("h3", f"{subject.label}, boxes"), _list_drops(list_drops(subject, "bbox"), "box"))
            )
    if not parts:
        return None
    note = (
        "COCO’s AP in both, over the seven classes that both datasets know; sizes are COCO’s areas, in the px of "
        "each image. COCO calls riders persons, so in streets a person found on a rider is neither right nor wrong. "
        "Cityscapes’ own AP above is another protocol, and no number of COCO’s can be held against it."
    )
    return join([tag("p", note, class_="note"), tag("div", *parts, class_="side-by-side")])


def _list_drops(drops: Sequence[Drop], what: str) -> Markup:
    """Return a table whose rows say `boxes` where they are of boxes."""
    rows = [
        tag(
            "tr",
            tag("th", drop.label if what == "mask" else f"{drop.label}, {what}", scope="row"),
            *(tag("td", format_value(value)) for value in (drop.coco, drop.streets)),
            tag("td", "–" if drop.difference is None else signed(drop.difference)),
        )
        for drop in drops
    ]
    head = tag("tr", *(tag("th", heading, scope="col") for heading in ("", "COCO", "Cityscapes", "difference")))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")


def _write_comparisons(study: TransferStudy) -> Markup | None:
    if not study.comparisons:
        return None
    headings = ("on the same images", "difference", "95 % interval", "p, bootstrap", "p, Wilcoxon", "images", "verdict")
    rows = [_write_comparison(comparison) for comparison in study.comparisons]
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    note = (
        "Images are the witnesses: objects are averaged within each one first. The interval is a bootstrap’s over "
        "images, the same ones for both models; Wilcoxon’s signed ranks need a mean per image, which an AP is not. "
        f"Below {MIN_IMAGES} images, or where the two tests disagree, nothing is decided. Nothing is corrected for the "
        f"{len(study.comparisons)} comparisons here: of twenty without any difference, one would look like one. "
        "Boundary IoU is that of Cheng et al.: the outermost pixels of both masks, .005 of the diagonal wide on "
        "Cityscapes and .02 on COCO."
    )
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table compared")
    return join([tag("div", table, class_="scroll"), tag("p", note, class_="note")])


def _write_comparison(comparison: Comparison) -> Markup:
    found = comparison.found
    known = not math.isnan(found.low)
    cells = [
        "–" if math.isnan(found.difference) else signed(found.difference),
        f"{signed(found.low)}\u00a0…\u00a0{signed(found.high)}" if known else "–",
        *("–" if math.isnan(p) else f"{p:.3g}" for p in (found.p_bootstrap, found.p_wilcoxon)),
        str(found.num_images),
        found.verdict if found.num_images else "–",
    ]
    what = f"{MEASURES[comparison.measure]} on {GROUNDS[comparison.ground]}"
    label = tag("th", what, tag("small", f" {comparison.second} − {comparison.first}"), scope="row")
    return tag("tr", label, *(tag("td", cell) for cell in cells))


def _write_pictures(study: TransferStudy) -> Markup | None:
    if not study.close_ups:
        return None
    second = study.subjects[1].label
    parts = []
    for kind, heading in _KINDS.items():
        figures = [_write_figure(name, close_up, picture) for name, close_up, picture in study.close_ups
                   if close_up.kind == kind]  # fmt: skip
        if figures:
            parts += [tag("h3", heading.format(second=second)), tag("div", *figures, class_="close-ups")]
    note = (
        "The same object in the ground truth and as both models drew it; below, the framed place, where they disagree "
        "most. Objects are chosen by their boundary IoU alone, good and bad. Click to enlarge."
    )
    if len(study.subjects) > 2:
        note += " Of the first two models only."
    return join([tag("p", note, class_="note"), *parts])


def _write_figure(name: str, close_up: CloseUp, picture: bytes) -> Markup:
    caption = f"{name} in {close_up.image}: {signed(close_up.gain)} boundary IoU"
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    image = void("img", src=uri, alt=f"Ground truth and two masks of a {caption}")
    return tag("figure", tag("button", image, type="button", class_="zoom"), tag("figcaption", caption))


def _write_speed(study: TransferStudy) -> Markup:
    rows = []
    for ground in study.grounds:
        seconds = [x.judged[ground.key].median_seconds if ground.key in x.judged else None for x in study.subjects]
        rows.append(Row(f"s per image, {GROUNDS[ground.key]}", tuple(seconds)))
    note = (
        "Median over images, from the resized image to run-length coded masks at its full size, one image at a time. "
        + describe_conditions(study)
    )
    return join([_write_table(study, "", rows), tag("p", note, class_="note")])


def _write_origin(study: TransferStudy) -> Markup:
    facts = []
    for subject in study.subjects:
        model, origin = subject.config.model, subject.origin
        source = f", made from {origin['file']} of {origin['framework']}, {origin['licence']}" if origin else ""
        said = (
            f"{model.family}, {model.backbone}, {model.num_classes} classes, "
            f"{subject.num_parameters / 1e6:.1f} million numbers{source}"
        )
        facts.append(tag("div", tag("dt", subject.label), tag("dd", said)))
    environment = {"begun": f"{study.conditions.begun} UTC", **study.conditions.environment}
    facts += [tag("div", tag("dt", name), tag("dd", value)) for name, value in environment.items() if value]
    facts += [
        tag("div", tag("dt", GROUNDS[x.key]), tag("dd", f"{describe_ground(x)}: {x.root}")) for x in study.grounds
    ]
    return tag("dl", *facts, class_="facts")


def _write_table(study: TransferStudy, title: str, rows: Sequence[Row]) -> Markup:
    headings = [tag("th", "", scope="col"), *(tag("th", x.label, scope="col") for x in study.subjects)]
    body = [
        tag("tr", tag("th", row.label, scope="row"), *(tag("td", format_value(value)) for value in row.values))
        for row in rows
    ]
    table = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *body), class_="small-table scores")
    return tag("div", tag("h3", title) if title else "", tag("div", table, class_="scroll"))


def _find_ground(study: TransferStudy, key: str) -> Ground | None:
    return next((ground for ground in study.grounds if ground.key == key), None)
