"""A network's heads for COCO's classes as heads for Cityscapes': what fine-tuning from COCO starts with.

Stands between a file of weights and the network that starts from it. Each class of the heads has rows of its own: a
score, four offsets, a mask; PointRend's point head also reads a coarse logit of each class. The rows of the background
and of the seven classes that both datasets know are copied. COCO has no rider: `rider_from: person` gives riders the
rows of persons, which they are to COCO; with `random` they keep those that the new network was born with.

COCO's heads have 81 rows (background and classes 1 … 80), or torchvision's 91: background and category ids.

Shapes: R rows of a head, C = 9 of the new one, K channels; per class 1, 4 (offsets) or 49 (coarse mask) numbers.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from cityopt.labels import COCO_IDS, COCO_NAMES, RIDER, THING_NAMES, THING_OF_COCO

State = dict[str, Tensor]
RiderFrom = Literal["person", "random", "none"]
_BOX, _MASK = "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."
_COARSE, _POINT = "roi_heads.mask_head.coarse_head.prediction.", "roi_heads.mask_head.point_head."
SCORES = f"{_BOX}cls_score.bias"
_NUM_COCO, _NUM_TORCHVISION, _NUM_THINGS = len(COCO_NAMES), COCO_IDS[-1], len(THING_NAMES)


def adapt_rows(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor], rider_from: RiderFrom) -> State | None:
    """Return a state of COCO's classes with heads for Cityscapes'; None where it is no such state, or is not to be.

    `fresh` is the state of the new network, whose rows are kept where COCO has none. What is no head stays as it is.
    """
    scores, wanted = state.get(SCORES), fresh.get(SCORES)
    if rider_from == "none" or scores is None or wanted is None or len(wanted) != _NUM_THINGS + 1:
        return None
    if len(scores) - 1 not in (_NUM_COCO, _NUM_TORCHVISION):
        return None
    sources = find_sources(len(scores) - 1, rider_from)
    return {
        name: _adapt(name, value, fresh[name], sources) if name in fresh else value for name, value in state.items()
    }


def number_classes(state: Mapping[str, Tensor]) -> State:
    """Return a state of torchvision's 91 rows with 81: the rows of ids that no category has are left out."""
    kept = [0, *COCO_IDS]
    sizes = {f"{_BOX}cls_score.": 1, f"{_BOX}bbox_pred.": 4, _MASK: 1}
    numbered = dict(state)
    for name, value in state.items():
        for layer, per_class in sizes.items():
            if name.startswith(layer):
                numbered[name] = _split(value, per_class)[kept].flatten(0, 1)
    return numbered


def find_sources(num_classes: int, rider_from: RiderFrom) -> list[int | None]:
    """Return for the background and each of Cityscapes' classes its row among COCO's; None for one without."""
    rows = {thing: coco for coco, thing in THING_OF_COCO.items()}
    if rider_from == "person":
        rows[RIDER] = rows[THING_NAMES.index("person") + 1]
    if num_classes == _NUM_TORCHVISION:
        rows = {thing: COCO_IDS[coco - 1] for thing, coco in rows.items()}
    return [0, *(rows.get(thing) for thing in range(1, _NUM_THINGS + 1))]


def _adapt(name: str, value: Tensor, fresh: Tensor, sources: list[int | None]) -> Tensor:
    """Return a tensor of a head for the new classes, any other one as it is."""
    if name.startswith(_BOX):
        return _copy_rows(value, fresh, sources, 4 if "bbox_pred" in name else 1)
    if name.startswith(_MASK):
        return _copy_rows(value, fresh, sources, 1)
    shifted = [None if row is None else row - 1 for row in sources[1:]]  # PointRend has no row for the background
    if name.startswith(_COARSE):
        return _copy_rows(value, fresh, shifted, 49)
    if not name.startswith(_POINT):
        return value
    if name.endswith(".weight"):
        value = _copy_columns(value, fresh, shifted)
    return _copy_rows(value, fresh, shifted, 1) if ".predictor." in name else value


def _copy_rows(value: Tensor, fresh: Tensor, sources: list[int | None], per_class: int) -> Tensor:
    parts, kept = _split(value, per_class), _split(fresh, per_class)
    rows = [kept[place] if row is None else parts[row] for place, row in enumerate(sources)]
    return torch.stack(rows).reshape(-1, *value.shape[1:]).to(value.dtype)


def _copy_columns(value: Tensor, fresh: Tensor, sources: list[int | None]) -> Tensor:
    """Return a layer `(rows, K + classes, 1)` of the point head that reads the coarse logits of the new classes.

    A class without a source gets none's influence: what is not known yet must not disturb the others.
    """
    num_own = fresh.shape[1] - len(sources)
    none = torch.zeros_like(value[:, :1])
    columns = [none if row is None else value[:, num_own + row : num_own + row + 1] for row in sources]
    return torch.cat([value[:, :num_own], *columns], dim=1)


def _split(value: Tensor, per_class: int) -> Tensor:
    """Return the numbers of each class, `(classes, per_class, …)`."""
    return value.reshape(-1, per_class, *value.shape[1:])
