"""What semantic models have in common: logits in, losses and maps of label ids out.

Stands between the seam (`segmentation_model.py`) and the families, which only compute logits. Classes are the 19
training ids; what leaves this floor are raw label ids, since that is what the protocols and submissions read.

Shapes: B images, C = 19 classes, H and W an image's height and width.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cityopt.config import ModelConfig
from cityopt.labels import EVALUATED_LABELS
from cityopt.models.losses import cross_entropy, dice, focal, weigh_classes
from cityopt.models.masks import SemanticMap
from cityopt.models.segmentation_model import IMAGE_MEAN, IMAGE_STD, SegmentationModel, Target

CLASS_IDS = np.array([label.id for label in sorted(EVALUATED_LABELS, key=lambda label: label.train_id)], np.uint8)
"""Raw label id of each training id."""
NUM_CLASSES = len(CLASS_IDS)


class SemanticModel(SegmentationModel):
    """A network that gives each pixel one of the 19 classes; families implement `classify`."""

    task = "semantic"
    mean: Tensor
    std: Tensor
    class_weights: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Remember the loss of the config."""
        super().__init__()
        self._losses = config.loss.split("+")
        self._gamma = config.focal_gamma
        self.register_buffer("class_weights", torch.ones(NUM_CLASSES))
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    @abstractmethod
    def classify(self, batch: Tensor) -> Tensor:
        """Return logits `(B, C, H, W)` of normalised images `(B, 3, H, W)` of any size."""

    def set_class_weights(self, num_pixels: Tensor) -> None:
        """Weigh classes by how rare they are in the training images, given the pixels `(C,)` of each."""
        self.class_weights.copy_(weigh_classes(num_pixels))

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the loss terms of the config; see `SegmentationModel.loss`."""
        terms: dict[str, Tensor] = {}
        for logits, share, some in self._classify_all(images):
            labels = torch.stack([targets[index]["label_map"] for index in some]).long()
            for name, value in self.judge(logits, labels).items():
                terms[name] = terms.get(name, torch.zeros((), device=value.device)) + share * value
        return terms

    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of logits `(B, C, H, W)` against training ids `(B, H, W)` int64, 255 ignored."""
        functions = {
            "cross_entropy": lambda: cross_entropy(logits, labels, self.class_weights),
            "focal": lambda: focal(logits, labels, self.class_weights, gamma=self._gamma),
            "dice": lambda: dice(logits, labels),
        }
        return {name: functions[name]() for name in self._losses}

    @torch.no_grad()
    def find_logits(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return logits `(C, H, W)` float32 of each image."""
        found: dict[int, Tensor] = {}
        for logits, _, some in self._classify_all(images):
            found |= dict(zip(some, logits.float().unbind(), strict=True))
        return [found[index] for index in range(len(images))]

    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[SemanticMap]:
        """Return the class of each pixel; at other `sizes` the logits are interpolated, not the classes."""
        logits = self.find_logits(images)
        return [make_map(one, None if sizes is None else sizes[index]) for index, one in enumerate(logits)]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses with targets, else a dict per image: `label_ids (H, W)` uint8 and `scores (C, H, W)`."""
        if targets is not None:
            return self.loss(images, targets)
        return [
            {"label_ids": torch.from_numpy(make_map(logits).label_ids), "scores": logits.softmax(dim=0)}
            for logits in self.find_logits(images)
        ]

    def _classify_all(self, images: Sequence[Tensor]) -> list[tuple[Tensor, float, list[int]]]:
        """Return logits of the images, those of one size together: logits, share of the images, and their indices."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        return [
            (
                self.classify((torch.stack([images[index] for index in some]) - self.mean) / self.std),
                len(some) / len(images),
                some,
            )
            for some in groups.values()
        ]


def make_map(logits: Tensor, size: tuple[int, int] | None = None) -> SemanticMap:
    """Turn logits `(C, H, W)` into raw label ids, at another size if one is given."""
    if size is not None and size != tuple(logits.shape[1:]):
        logits = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return SemanticMap(CLASS_IDS[logits.argmax(dim=0).cpu().numpy()])
