"""The seam that every model family implements: `loss` for training, `predict` for everything else.

Training and evaluation know models only through this class, so a new family needs no change there.
`tests/models/test_segmentation_model_contract.py` holds what every family must keep.

Shapes: B images in a batch, H and W an image's height and width (any, also different ones in one
batch), N instances.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from cityopt.config import Task
from cityopt.models.masks import Prediction, SemanticMap

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's, of RGB in [0, 1]: what pretrained weights expect."""

Target = Mapping[str, Tensor]
"""Instance models: `boxes_xyxy (N, 4) float32` px, `classes (N,) int64 in 1..8`, `instance_map (H, W) int32`: 0 or
i + 1. Semantic models: `label_map (H, W) uint8` training ids 0..18, or 255 where nothing is to be learned."""


class SegmentationModel(nn.Module, ABC):
    """A network that finds instances, or classes pixels, in street scenes."""

    task: Task
    """What the network predicts: `Prediction`s, or `SemanticMap`s."""

    @abstractmethod
    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the named loss terms, scalars whose sum is trained on.

        Args:
            images: B tensors `(3, H, W)` float32 in [0, 1], RGB.
            targets: One per image, on the same device. Zero instances are fine: the terms stay finite.
        """

    @abstractmethod
    def predict(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Sequence[Prediction] | Sequence[SemanticMap]:
        """Return one prediction per image, instances best score first; no gradients.

        Args:
            images: B tensors `(3, H, W)` float32 in [0, 1], RGB.
            sizes: The (height, width) that each prediction is made for, where the images were resized; by default
                that of the image. Boxes are scaled and masks are drawn at that size: none is enlarged afterwards.
        """


class InstanceModel(SegmentationModel):
    """A network that finds instances of the eight thing classes."""

    task = "instance"

    @abstractmethod
    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        """Return the instances of each image, best score first; see `SegmentationModel.predict`."""
