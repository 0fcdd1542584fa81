"""The story of `cityopt predict`: pictures of any size -> a trained model -> overlays, and JSON with RLE masks.

Pictures pass in batches, each is written and let go, so memory does not grow with their number. Each is resized to fit
into the size that the model was trained at, its aspect kept, and what is found there is drawn at its own size.
What cannot be read is remembered and told at the end; `prediction_folder` says what is written where.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cityopt.data.cityscapes import OnCount
from cityopt.data.pictures import Picture, find_label, find_pictures, fit_size, read_picture, read_truth
from cityopt.data.resizing import resize_image
from cityopt.errors import ConfigError, DataError, StoppedError, WeightsError
from cityopt.evaluation.evaluate import choose_batch_size
from cityopt.evaluation.matching import Matching, list_instances, match_detections, pick_rows
from cityopt.evaluation.overlays import draw_overlay, encode_picture
from cityopt.labels import THING_LABELS
from cityopt.models.masks import Prediction
from cityopt.models.segmentation_model import InstanceModel
from cityopt.runtime import repeatable, resolve_device
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import check_classes, load_model
from cityopt.training.failures import naming_failures
from cityopt.training.prediction_folder import DETECTIONS, OVERLAYS, ModelFacts, OutFolder, PredictSummary

FORMAT = "cityopt-detections-1"
MAX_BATCH_PIXELS = 2**25
"""Pixels of the pictures, at their own sizes, that a batch may hold; a larger picture goes alone."""


@dataclass(frozen=True)
class _Item:
    picture: Picture
    pixels: NDArray[np.uint8]
    seen: tuple[int, int]
    """(height, width) at which the model sees it."""


def run_prediction(
    reference: str,
    inputs: Sequence[Path],
    *,
    out: Path,
    store: Path,
    score: float = 0.5,
    device: str = "auto",
    batch_size: int | None = None,
    on_count: OnCount | None = None,
) -> PredictSummary:
    """Predict the pictures that files and folders mean, and write overlays and JSON below `out`.

    Raises ConfigError (an option is impossible, or `out` holds files of somebody else), DataError (no picture could be
    read), StoreError (no such model, `out` not writable), WeightsError, TrainingError `oom`, StoppedError (Ctrl-C).
    """
    if not 0 <= score <= 1:
        raise ConfigError(f"`--score` must be in 0..1, but got {score}. Use 0.5 for what is rather there than not.")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"`--batch-size >= 1` must hold, but got {batch_size}.")
    place = resolve_device(device)
    pictures, missing = find_pictures(inputs, outside=out.resolve())
    problems = {str(path): reason for path, reason in missing.items()}
    if not pictures:
        raise DataError(f"there must be a picture to look at, but there is none: {_list(problems)}")
    folder = OutFolder(out, pictures)
    checkpoint = resolve_checkpoint(store, reference)
    model, config = load_model(checkpoint)
    check_classes(config, reference)
    if not isinstance(model, InstanceModel):
        raise WeightsError(f"predict draws instances, but {reference} is a model for the task {model.task!r}.")
    facts = ModelFacts(reference, str(checkpoint.absolute()), config.data.size)
    run = Predictor(model, facts, folder, score, place, PredictSummary(problems=problems))
    folder.claim(facts, score)
    try:
        with repeatable(place), naming_failures("Lower --batch-size."):
            run.predict(pictures, batch_size or choose_batch_size(config.data.size), on_count)
    except KeyboardInterrupt:
        done = f"{run.summary.num_pictures} of {len(pictures)} pictures are done"
        raise StoppedError(f"Stopped; {done} and stay in {out}. The same command does all of them anew.") from None
    folder.finish(facts, score, run.summary)
    if not run.summary.num_pictures:
        raise DataError(f"no picture could be read: {_list(run.summary.problems)}")
    return run.summary


class Predictor:
    """A model at work on pictures."""

    def __init__(
        self,
        model: InstanceModel,
        facts: ModelFacts,
        folder: OutFolder,
        score: float,
        device: torch.device,
        summary: PredictSummary,
    ) -> None:
        self.model, self.facts, self.folder, self.score = model, facts, folder, score
        self.device, self.summary = device, summary

    def predict(self, pictures: Sequence[Picture], batch_size: int, on_count: OnCount | None) -> None:
        """Predict pictures in batches, and write each; what cannot be read is left out."""
        self.model.to(self.device)
        places = {picture.path: place for place, picture in enumerate(pictures, start=1)}
        done = 0
        for batch in self._read_batches(pictures, batch_size):
            for item, prediction in zip(batch, self._look(batch), strict=True):
                self._write(item, prediction)
            done = places[batch[-1].picture.path]
            if on_count:
                on_count(done, len(pictures))
        if on_count and done < len(pictures):  # the last ones could not be read
            on_count(len(pictures), len(pictures))

    def _read_batches(self, pictures: Sequence[Picture], batch_size: int) -> Iterator[list[_Item]]:
        """Yield neighbours that the model sees at one size, so that no picture is padded because of another one."""
        batch: list[_Item] = []
        num_pixels = 0
        for picture in pictures:
            try:
                pixels = read_picture(picture.path)
            except DataError as error:
                self.summary.problems[str(picture.path)] = str(error).removeprefix(f"{picture.path} ")
                continue
            height, width = pixels.shape[:2]
            item = _Item(picture, pixels, fit_size((height, width), self.facts.input_size))
            num_pixels += height * width
            if batch and (len(batch) == batch_size or item.seen != batch[0].seen or num_pixels > MAX_BATCH_PIXELS):
                yield batch
                batch, num_pixels = [], height * width
            batch.append(item)
        if batch:
            yield batch

    def _look(self, batch: Sequence[_Item]) -> list[Prediction]:
        seen = np.stack([resize_image(item.pixels, item.seen) for item in batch])
        with torch.inference_mode():
            images = torch.from_numpy(seen).to(self.device).permute(0, 3, 1, 2).contiguous().float().div_(255)
            sizes = [(item.pixels.shape[0], item.pixels.shape[1]) for item in batch]
            return self.model.predict(list(images.unbind()), sizes)

    def _write(self, item: _Item, prediction: Prediction) -> None:
        raster = self._read_truth(item)
        matching = None
        if raster is not None:
            matching = match_detections(prediction, list_instances(raster), score=self.score)
        overlay = draw_overlay(item.pixels, prediction, raster, score=self.score)
        self.folder.write(OVERLAYS, item.picture.name, encode_picture(overlay))
        self.folder.write(DETECTIONS, item.picture.name, self._describe(item, prediction, matching))
        self.summary.count(len(pick_rows(prediction, self.score)), matching)

    def _read_truth(self, item: _Item) -> NDArray[np.uint16] | None:
        try:
            return read_truth(item.picture.path, (item.pixels.shape[0], item.pixels.shape[1]))
        except DataError as error:
            label = str(find_label(item.picture.path))
            self.summary.problems[label] = f"{str(error).removeprefix(f'{label} ')} Its picture is drawn without it."
            return None

    def _describe(self, item: _Item, prediction: Prediction, matching: Matching | None) -> dict[str, Any]:
        height, width = prediction.size
        document: dict[str, Any] = {
            "format": FORMAT,
            "image": {"path": str(item.picture.path.absolute()), "height": height, "width": width},
            "model": asdict(self.facts),
            "score_threshold": self.score,
            "detections": [describe_detection(prediction, row) for row in pick_rows(prediction, self.score)],
        }
        if matching is not None:
            counts = {"found": matching.num_found, "false": matching.num_false, "missed": matching.num_missed}
            document["ground_truth"] = {"path": str(find_label(item.picture.path)), **counts, "f1": matching.f1}
        return document


def describe_detection(prediction: Prediction, row: int) -> dict[str, Any]:
    """Return a detection as plain data: the class by name and by label id, its box in px, its mask as COCO's RLE."""
    label = THING_LABELS[int(prediction.classes[row]) - 1]
    mask = prediction.masks[row]
    return {
        "class": label.name,
        "class_id": label.id,
        "score": float(prediction.scores[row]),
        "box_xyxy": [float(edge) for edge in prediction.boxes_xyxy[row]],
        "mask": {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")},
    }


def _list(problems: dict[str, str]) -> str:
    """Return the first few problems as text."""
    some = [f"{path} {reason}" for path, reason in list(problems.items())[:5]]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(some) + more
