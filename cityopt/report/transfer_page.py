"""A transfer study as one HTML file: what models of COCO are worth on Cityscapes, and whose boundaries fit better."""

import base64
import math
from collections.abc import Sequence

from cityopt.evaluation.class_maps import RIDER_RULE
from cityopt.evaluation.close_ups import CloseUp
from cityopt.report.document import Section, write_document
from cityopt.report.markup import Markup, join, signed, tag, void
from cityopt.report.tables import format_value
from cityopt.report.transfer_charts import draw_drops
from cityopt.report.transfer_tables import (
    GROUNDS,
    MEASURES,
    Row,
    describe_ground,
    list_classes,
    list_drops,
    list_scores,
)
from cityopt.training.transfer import STREETS, Comparison, Ground, TransferStudy

_KINDS = {
    "gain": "Most gained by {second}",
    "middle": "In the middle of all objects that both found",
    "loss": "Least gained, or lost, by {second}",
}


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
    is_part = any(ground.num_images < ground.num_in_split for ground in study.grounds)
    warning = "Only a part of the images was judged: no number here is official." if is_part else ""
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
    found = next((x for x in study.comparisons if x.measure == "boundary_iou"), None)
    if found is None:
        return f"{study.subjects[0].label} on {GROUNDS[ground.key]}, as it is", detail
    if not found.found.num_images:
        return "The models found no object in common, so their boundaries cannot be compared", detail
    verdict = {"better": "fit better than", "worse": "fit worse than", "undecided": "cannot be told apart from"}
    headline = (
        f"{found.second}’s boundaries {verdict[found.found.verdict]} {found.first}’s: "
        f"{signed(found.found.difference)} boundary IoU on the objects that both found"
    )
    return headline, detail


def _write_scores(study: TransferStudy) -> Markup:
    tables = [_write_table(study, describe_ground(x), list_scores(study, x)) for x in study.grounds]
    return tag("div", *tables, class_="side-by-side")


def _write_classes(study: TransferStudy) -> Markup | None:
    ground = _find_ground(study, STREETS)
    if ground is None:
        return None
    tables = [
        _write_table(study, f"{label} by class", list_classes(study, ground, metric))
        for metric, label in (
            ("cityscapes/ap", "Cityscapes AP"),
            ("cityscapes/ap50", "Cityscapes AP50"),
            ("coco/segm/ap", "COCO mask AP"),
            ("boundary/segm/ap", "Boundary mask AP"),
        )
    ]
    note = "A dash: the images hold nothing of that class to find."
    if any(subject.knows_coco for subject in study.subjects):
        note += f" COCO has no rider, so a model of COCO finds none. The extra with guessed riders: {RIDER_RULE}."
    return join([tag("div", *tables, class_="side-by-side"), tag("p", note, class_="note")])


def _write_drops(study: TransferStudy) -> Markup | None:
    parts = []
    for subject in study.subjects:
        drops = list_drops(subject)
        if drops:
            rows = [
                tag(
                    "tr",
                    tag("th", drop.label, scope="row"),
                    *(tag("td", format_value(value)) for value in (drop.coco, drop.streets)),
                    tag("td", "–" if drop.difference is None else signed(drop.difference)),
                )
                for drop in drops
            ]
            headings = ("", "COCO", "Cityscapes", "difference")
            head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
            table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")
            parts.append(tag("div", tag("h3", subject.label), draw_drops(drops, subject.label), table))
    if not parts:
        return None
    note = (
        "COCO’s mask AP in both, over the seven classes that both datasets know; sizes are COCO’s areas, in the px of "
        "each image. Cityscapes’ own AP above is another protocol, and no number of COCO’s can be held against it."
    )
    return join([tag("p", note, class_="note"), tag("div", *parts, class_="side-by-side")])


def _write_comparisons(study: TransferStudy) -> Markup | None:
    if not study.comparisons:
        return None
    headings = ("on the same images", "difference", "95 % interval", "p, bootstrap", "p, Wilcoxon", "images", "verdict")
    rows = [_write_comparison(comparison) for comparison in study.comparisons]
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    note = (
        "Images are the witnesses: objects are averaged within each one first. The interval is a bootstrap’s over "
        "images, the same ones for both models; Wilcoxon’s signed ranks need a mean per image, which an AP is not. "
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
        found.verdict if known else "–",
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
    note = "Median over images, from the resized image to run-length coded masks at its full size, one image at a time."
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
