"""The protocols by which a model can be judged, by name, fed alike and named apart.

Stands between the stream of full-size predictions (full_resolution.py) and the protocols' own modules. Each protocol
takes an image's raw instanceIds and what a model found in it, and begins its metrics' names with a word of its own:

    cityscapes   `cityscapes/…`        official instance AP
    coco         `coco/<segm|bbox>/…`  COCO's AP of masks and boxes, groups as crowds
    semantic     `semantic_things/…`   the official pixel scores of the eight classes, from painted masks
    boundary     `boundary/segm/…`     COCO's AP of masks whose edges must be right too, where it is asked for

A semantic model knows no instances: it is judged by `semantic` alone, as `semantic/…` on all nineteen classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from cityopt.config import Task
from cityopt.errors import ConfigError
from cityopt.evaluation.boundary import BoundaryEvaluator
from cityopt.evaluation.cityscapes_ap import CityscapesEvaluator
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.evaluation.semantic import THINGS_PREFIX, SemanticEvaluator, paint_prediction
from cityopt.labels import THING_LABELS
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.settings import name_nearest


class Judge(Protocol):
    """Collects images with their predictions, and then gives the scores of all of them."""

    def add(self, image_id: str, raster: NDArray[Any], prediction: Any) -> None:
        """Add one image: its raw instanceIds `(H, W)` and what a model of the task found in it, at the same size."""

    def summarize(self) -> dict[str, float]:
        """Return all metrics; NaN where there is nothing to judge."""


class PaintedThings:
    """Judges an instance model's pixels: its masks of at least .5, the best on top, on the eight classes."""

    def __init__(self) -> None:
        """Begin without images."""
        self._evaluator = SemanticEvaluator(THING_LABELS, prefix=THINGS_PREFIX)

    def add(self, image_id: str, raster: NDArray[Any], prediction: Prediction) -> None:
        """Paint the prediction and add its image; see `SemanticEvaluator.add`."""
        self._evaluator.add(image_id, raster, paint_prediction(prediction))

    def summarize(self) -> dict[str, float]:
        """Return all metrics; see `SemanticEvaluator.summarize`."""
        return self._evaluator.summarize()


class PredictedClasses:
    """Judges a semantic model's pixels on all evaluated classes."""

    def __init__(self) -> None:
        """Begin without images."""
        self._evaluator = SemanticEvaluator()

    def add(self, image_id: str, raster: NDArray[Any], prediction: SemanticMap) -> None:
        """Add the image of a map; see `SemanticEvaluator.add`."""
        self._evaluator.add(image_id, raster, prediction.label_ids)

    def summarize(self) -> dict[str, float]:
        """Return all metrics; see `SemanticEvaluator.summarize`."""
        return self._evaluator.summarize()


PROTOCOLS: dict[str, Callable[[], Judge]] = {
    "cityscapes": CityscapesEvaluator,
    "coco": CocoEvaluator,
    "semantic": PaintedThings,
    "boundary": BoundaryEvaluator,
}
USUAL = ("cityscapes", "coco", "semantic")
"""Protocols of instances that are meant where none is named."""

SEMANTIC_PROTOCOLS: dict[str, Callable[[], Judge]] = {"semantic": PredictedClasses}


def parse_protocols(text: str | None, task: Task = "instance") -> tuple[str, ...]:
    """Read `cityscapes,coco`; None means the usual ones of a model's task.

    Raises ConfigError: no name, one that is no protocol's, or one that cannot judge a model of the task.
    """
    if text is None:
        return USUAL if task == "instance" else tuple(SEMANTIC_PROTOCOLS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PROTOCOLS:
            raise ConfigError(
                f"`--protocol` takes {', '.join(PROTOCOLS)}, with commas between them, but got {name!r}."
                + name_nearest(name, PROTOCOLS)
            )
        if task == "semantic" and name not in SEMANTIC_PROTOCOLS:
            raise ConfigError(
                f"`--protocol {name}` judges instances, but the model is semantic and finds none. "
                "Use `--protocol semantic`."
            )
    return names


def open_judges(names: Sequence[str], task: Task = "instance") -> list[Judge]:
    """Return a judge without images for each protocol."""
    judges = PROTOCOLS if task == "instance" else SEMANTIC_PROTOCOLS
    return [judges[name]() for name in names]
