"""Later models of a transfer study beside the first one, image by image, and objects as both of them drew them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cityopt.data.cityscapes import Frame, read_image, read_instance_ids
from cityopt.data.coco import CocoImage, encode_annotations
from cityopt.data.pictures import read_picture
from cityopt.evaluation.cityscapes_ap import compute_precisions
from cityopt.evaluation.close_ups import CloseUp, choose_close_ups, draw_close_up
from cityopt.evaluation.coco_ap import annotate_raster
from cityopt.evaluation.overlays import encode_picture
from cityopt.evaluation.paired import compare_means, compare_scores
from cityopt.evaluation.transfer import FoundObject, Judged
from cityopt.labels import COCO_NAMES, THING_NAMES
from cityopt.training.transfer_study import COCO, STREETS, Comparison, Subject

AP_DRAWS = 300


def compare_subjects(first: Subject, second: Subject) -> list[Comparison]:
    """Compare two models on every ground that both were judged on."""
    comparisons = []
    for ground in (STREETS, COCO):
        if ground not in first.judged or ground not in second.judged:
            continue
        own, other = first.judged[ground], second.judged[ground]
        pairs = {
            "boundary_iou": _average_objects(own, other, lambda x: x.boundary_iou),
            "mask_iou": _average_objects(own, other, lambda x: x.mask_iou),
        }
        found = {measure: compare_means(*scores) for measure, scores in pairs.items()}
        if ground == STREETS:
            score = partial(_score_both, own, other)
            found["cityscapes_ap"] = compare_scores(score, len(own.matches), draws=AP_DRAWS)
        comparisons += [Comparison(ground, first.label, second.label, name, x) for name, x in found.items()]
    return comparisons


def _average_objects(
    first: Judged, second: Judged, read: Callable[[FoundObject], float]
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return for each image both models' mean over the objects that both found, NaN where there is none."""
    means: tuple[list[float], list[float]] = ([], [])
    for image, objects in first.found.items():
        both = [number for number in objects if number in second.found[image]]
        for column, found in zip(means, (objects, second.found[image]), strict=True):
            column.append(float(np.mean([read(found[number]) for number in both])) if both else np.nan)
    return np.array(means[0]), np.array(means[1])


def _score_both(first: Judged, second: Judged, rows: "np.ndarray[Any, np.dtype[np.int64]]") -> tuple[float, float]:
    """Return Cityscapes' AP of both models on some images; NaN where they show less classes than all images do."""
    shown = {index for row in rows for index in first.matches[row].object_classes.tolist()}
    if any(index not in shown for match in first.matches for index in match.object_classes.tolist()) or not shown:
        return np.nan, np.nan
    scores = [compute_precisions([judged.matches[row] for row in rows]) for judged in (first, second)]
    return float(np.nanmean(scores[0])), float(np.nanmean(scores[1]))


def draw_close_ups(
    subjects: Sequence[Subject], frames: Sequence[Frame], images: Sequence[CocoImage]
) -> list[tuple[str, CloseUp, bytes]]:
    """Draw objects that the first two models found, in streets where there are any, else in COCO's images."""
    subjects, drawn = subjects[:2], []
    ground = STREETS if frames else COCO
    if len(subjects) < 2 or any(ground not in subject.judged for subject in subjects):
        return []
    names = THING_NAMES if frames else COCO_NAMES
    for close_up in choose_close_ups(*(subject.judged[ground].found for subject in subjects)):
        if frames:
            frame = next(frame for frame in frames if frame.name == close_up.image)
            assert frame.instance_ids is not None
            pixels, truths = read_image(frame.image), list(annotate_raster(read_instance_ids(frame.instance_ids)))
        else:
            image = next(image for image in images if image.name == close_up.image)
            pixels, truths = read_picture(image.path), encode_annotations(image)
        truth = truths[close_up.number]
        picture = draw_close_up(pixels, truth["segmentation"], close_up, [subject.label for subject in subjects])
        drawn.append((names[truth["category_id"] - 1], close_up, encode_picture(picture)))
    return drawn
