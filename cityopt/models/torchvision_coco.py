"""torchvision's Mask R-CNN for COCO as ours: the file of `MaskRCNN_ResNet50_FPN_Weights.COCO_V1`, or one made from it.

Names are torchvision's already, of 2019 or of today. What else differs goes
- into the state: 91 rows of its heads, of which 10 belong to no category, and norms that were trained without epsilon;
- into the config: `flavour: torchvision_coco`, whose regions lie half a cell further and are at least a cell wide, as
  RoIAlign once had them, and its anchors, which it rounds.

Not the same, so that a score is near torchvision's own and not equal to it:
- how many samples a cell of a large region averages (there 2 x 2, here one per pixel of the map);
- how masks are pasted (there in rounded boxes);
- where the anchors of P6 lie: here 64 px apart; there 61 or 62, where a padded side is no multiple of 64, such as 800,
  which at the bottom of an image adds up to as much as 42 px;
- how images are resized (there without antialiasing, and rounded down).

A file is taken for the published one by its names of 2019. Weights that were loaded from it and saved anew under
today's names look like weights that trained on with epsilon, so their norms are left as they are, too weak by a share
of 5e-6 / variance: convert the published file itself.

Source: torchvision.models.detection (mask_rcnn, anchor_utils, `overwrite_eps`).
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from cityopt.config import DEFAULT_ANCHORS, AnchorTable, ModelConfig
from cityopt.errors import WeightsError
from cityopt.labels import COCO_IDS
from cityopt.models.boxes import build_cells
from cityopt.models.class_rows import SCORES, number_classes
from cityopt.models.detectron2 import Conversion
from cityopt.models.weights import fold_epsilon, rename_state

LICENCE = "BSD 3-Clause (torchvision)"
SUPPORTED = "Mask R-CNN with ResNet-50 and an FPN for COCO (maskrcnn_resnet50_fpn, COCO_V1)"
_BODY, _COUNTER = "backbone.body.", ".num_batches_tracked"


def is_torchvision(names: Iterable[str]) -> bool:
    """Say whether tensors are named as torchvision's detectors name them."""
    return any(name.startswith(_BODY) for name in names)


def convert_torchvision(tensors: Mapping[str, Tensor], *, origin: str) -> Conversion:
    """Turn the tensors of torchvision's network into a config and a state; `origin` names the file.

    Raises WeightsError: another network than the supported one, or other classes.
    """
    scores = tensors.get(SCORES)
    if scores is None or not any(name.startswith("roi_heads.mask_predictor.") for name in tensors):
        raise WeightsError(f"{origin} is no Mask R-CNN of torchvision's first version. Supported: {SUPPORTED}.")
    if len(scores) != COCO_IDS[-1] + 1:
        raise WeightsError(
            f"the heads of {origin} must know torchvision's 91 classes of COCO (background and ids to 90), but know "
            f"{len(scores)}. Supported: {SUPPORTED}."
        )
    dropped = tuple(sorted(name for name in tensors if name.endswith(_COUNTER)))
    state = rename_state({name: value for name, value in tensors.items() if name not in dropped})
    # Names of 2019 are those of the published file: what was saved anew has today's, and may have trained on.
    if "backbone.fpn.inner_blocks.0.weight" in tensors:
        state = fold_epsilon(state)
    model = ModelConfig(
        classes="coco",
        flavour="torchvision_coco",
        weights=origin,
        anchors="explicit",
        anchor_table=round_anchors(DEFAULT_ANCHORS),
    )
    return Conversion(model, number_classes(state), dropped)


def round_anchors(table: AnchorTable) -> AnchorTable:
    """Return anchors whose sides are torchvision's: half of each is rounded to whole pixels."""
    corners = build_cells(table.sizes, table.ratios).round().double()
    width, height = (corners[..., 2:] - corners[..., :2]).unbind(dim=-1)
    sizes, ratios = (tuple(map(tuple, x.tolist())) for x in ((width * height).sqrt(), height / width))
    return AnchorTable(sizes=sizes, ratios=ratios)
