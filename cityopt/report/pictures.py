"""Overlays in the report: small copies inside the page, which asks no server for anything.

A promotion keeps the best and the worst images of val; before there is one, the best trial is shown beside the worst
that drew pictures, on the same images of the holdout.
"""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cityopt.evaluation.matching import MIN_IOU, SCORE
from cityopt.report.findings import Findings, TrialRecord
from cityopt.report.markup import Markup, join, tag, void
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_value
from cityopt.report.verdict import describe_ground
from cityopt.tracking.run_folder import ARTIFACTS

OVERLAYS = "overlays"
WIDTH_PX, QUALITY, MAX_PICTURES = 1400, 80, 4
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_RANKED = re.compile(r"\d+_(?P<measure>f1|miou)-(?P<score>[\d.]+)_(?P<image>.+)")
_MEASURES = {"f1": "F1", "miou": "mean IoU"}


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading."""

    heading: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and its (width, height) in pixels."""

    uri: str
    size: tuple[int, int]


def write_pictures(findings: Findings) -> Markup:
    """Return the galleries with their pictures; one that cannot be read is left out."""
    galleries = [(gallery, [_write_figure(path) for path in gallery.paths]) for gallery in choose_galleries(findings)]
    parts = [
        tag("div", tag("h3", gallery.heading), tag("div", *[f for f in figures if f], class_="gallery"))
        for gallery, figures in galleries
        if any(figures)
    ]
    if not parts:
        return tag("p", "No run has drawn pictures yet.", class_="empty")
    found = "Detections" if findings.config.model.task == "instance" else "Predicted classes"
    note = f"{found} on the left, what is there on the right, classes in the Cityscapes palette. Click to enlarge."
    return join([tag("p", note, class_="note"), *parts])


def choose_galleries(findings: Findings) -> list[Gallery]:
    """Return what is shown: best and worst images of the promoted model, else of best and worst trial."""
    promotion = findings.promotion
    if promotion is not None:
        folder = promotion.folder / ARTIFACTS / OVERLAYS
        where = f"{promotion.name} on val, "
        by = f"by F1 (detections of score {SCORE:g} or more, masks’ IoU {MIN_IOU:g} or more)"
        if findings.config.model.task == "semantic":
            by = "by mean IoU over the classes that they show or are said to show"
        ranked = [Gallery(f"{where}{name} images {by}", _list_pictures(folder / name)) for name in ("best", "worst")]
        if all(gallery.paths for gallery in ranked):
            return ranked
    best, worst = findings.best, _find_worst(findings)
    chosen = [("the best trial", best), ("the worst that drew pictures", worst)]
    galleries = [_open_trial(findings, trial, role) for role, trial in chosen if trial is not None]
    if promotion is not None:
        own = Gallery(f"{promotion.name} on val", _list_pictures(promotion.folder / ARTIFACTS / OVERLAYS))
        galleries.insert(0, own)
    return [gallery for gallery in galleries if gallery.paths]


def encode_small(path: Path) -> Picture:
    """Return a picture at most `WIDTH_PX` wide. Raises OSError: it cannot be read."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if small.width > WIDTH_PX:
        small = small.resize((WIDTH_PX, round(small.height * WIDTH_PX / small.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}", small.size)


def _open_trial(findings: Findings, trial: TrialRecord, role: str) -> Gallery:
    score = f"{describe_metric(findings.config.search.metric)} {format_value(trial.status.value)}"
    heading = f"Trial {trial.number}, {role} ({score}), {describe_ground(findings)}"
    assert trial.folder is not None
    return Gallery(heading, _list_pictures(trial.folder / ARTIFACTS / OVERLAYS))


def _find_worst(findings: Findings) -> TrialRecord | None:
    """Return the trial of the worst score that drew pictures, beside the best one."""
    for status in reversed(findings.status.ranked):
        trial = findings.trials[status.number]
        drew = trial.folder is not None and _list_pictures(trial.folder / ARTIFACTS / OVERLAYS)
        if status.value is not None and drew and trial is not findings.best:
            return trial
    return None


def _list_pictures(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.name[0] != ".")
    return tuple(found[:MAX_PICTURES])


def _write_figure(path: Path) -> Markup | None:
    try:
        small = encode_small(path)
    except (OSError, UnidentifiedImageError, ValueError):
        return None
    ranked = _RANKED.fullmatch(path.stem)
    caption = f"{ranked['image']}, {_MEASURES[ranked['measure']]} {ranked['score']}" if ranked else path.stem
    width, height = small.size
    said = f"Detections beside the ground truth of {caption}"
    picture = void("img", src=small.uri, width=width, height=height, alt=said)
    return tag("figure", tag("button", picture, type="button", class_="zoom"), tag("figcaption", caption))
