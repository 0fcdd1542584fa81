"""detectron2's weights as ours: Mask R-CNN and PointRend on ResNet-50 or -101 with an FPN.

Takes the tensors of a file of detectron2's model zoo (or of a training with it) and returns the config and the
state of the same network here. What differs between the frameworks goes three ways:
- into the state: names, the order of an image's colours, the background (last there, first here);
- into the config, with which a checkpoint keeps it: `flavour: detectron2` (early strides, pixels in 0..255 minus the
  mean, divided by nothing), the classes, the backbone, the anchors;
- nowhere, since cityopt does the same: frozen norms, unrounded anchors at fixed strides, aligned RoIAlign with an
  adaptive number of samples, masks pasted in continuous coordinates.

Source: detectron2's model zoo and its `checkpoint` and `modeling` packages.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cityopt.config import DEFAULT_ANCHORS, ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.boxes import build_cells
from cityopt.models.segmentation_model import IMAGE_MEAN
from cityopt.models.weights import State
from cityopt.settings import validate

LICENCE = "CC BY-SA 3.0"
"""Of the model zoo's files; what is made from them carries it."""
SUPPORTED = "Mask R-CNN and PointRend with ResNet-50 or ResNet-101 and an FPN, for COCO's 80 or Cityscapes' 8 classes"
_CLASSES = {8: "cityscapes", 80: "coco"}
_BACKBONES = {6: "resnet50", 23: "resnet101"}
_BODY = "backbone.bottom_up."
_HEADS = "roi_heads."
_CELLS = "proposal_generator.anchor_generator.cell_anchors."
_LONGEST_LIST = 12

_OLD_POINT_REND = (
    (re.compile(r"^roi_heads\.mask_coarse_head\."), "roi_heads.mask_head.coarse_head."),
    (re.compile(r"^roi_heads\.mask_point_head\."), "roi_heads.mask_head.point_head."),
    (re.compile(r"coarse_mask_fc(\d)\."), r"fc\1."),
)
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.bottom_up\.(block|stage|blocks|stages)|\.patch_embed", "a network with a backbone that is no ResNet"),
    (r"^head\.cls_subnet\.", "RetinaNet"),
    (r"^sem_seg_head\.point_head\.", "semantic PointRend"),
    (r"^sem_seg_head\.", "Panoptic FPN or another network with a semantic head"),
    (r"^roi_heads\.box_(head|predictor)\.\d", "Cascade R-CNN"),
    (r"^roi_heads\.keypoint_head\.", "Keypoint R-CNN"),
    (r"^roi_heads\.res5\.", "a network with a C4 backbone (R50-C4, R101-C4)"),
    (r"^backbone\.(res|stem)", "a network without an FPN (C4 or DC5)"),
    (r"^(res\d_\d+_branch|conv1_w|fc1000)", "an ImageNet classifier of Caffe2, as the zoo starts from"),
    (r"^(stem\.conv1|res2\.0)\.", "an ImageNet classifier, as the zoo starts from"),
    (r"^transformer\.|^detr\.", "DETR"),
)
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(f"^{old}$"), new)
    for old, new in (
        (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
        (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight", r"backbone.body.layer{0}.\2.downsample.0.weight"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)", r"backbone.body.layer{0}.\2.downsample.1.\3"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight", r"backbone.body.layer{0}.\2.conv\3.weight"),
        (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)", r"backbone.body.layer{0}.\2.bn\3.\4"),
        (r"backbone\.fpn_lateral(\d)\.(\w+)", r"backbone.fpn.inner_blocks.{1}.0.\2"),
        (r"backbone\.fpn_output(\d)\.(\w+)", r"backbone.fpn.layer_blocks.{1}.0.\2"),
        (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (r"roi_heads\.box_head\.fc1\.(\w+)", r"roi_heads.box_head.fc6.\1"),
        (r"roi_heads\.box_head\.fc2\.(\w+)", r"roi_heads.box_head.fc7.\1"),
        (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
        (r"roi_heads\.mask_head\.mask_fcn([1-4])\.(\w+)", r"roi_heads.mask_head.{0}.0.\2"),
        (r"roi_heads\.mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
        (r"roi_heads\.mask_head\.predictor\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
        (r"(roi_heads\.mask_head\.(?:coarse|point)_head\.\w+\.\w+)", r"\1"),
    )
)
"""`{0}` and `{1}`: the first number less 1 and less 2, since stages, levels and layers are counted from elsewhere."""


@dataclass(frozen=True)
class Conversion:
    """A network of another framework as one of ours."""

    model: ModelConfig
    state: State
    dropped: tuple[str, ...]
    """Entries of the file that are no weights, and were checked or are not needed."""


def is_detectron2(names: Iterable[str]) -> bool:
    """Say whether tensors are named as detectron2 (or its ancestors) names them."""
    return any(
        re.search(r"^(backbone\.(bottom_up|res\d|stem)|proposal_generator|res\d|stem\.|head\.cls_s)", n) for n in names
    )


def convert_detectron2(tensors: Mapping[str, Tensor], *, origin: str) -> Conversion:
    """Turn the tensors of a detectron2 network into a config and a state.

    `origin` names the file: in messages, and as `weights` of the config.

    Raises WeightsError: another family, other classes, statistics or norms than supported, or tensors of no use.
    """
    tensors = {_modernise(name): value for name, value in tensors.items()}
    _refuse_other_families(tensors, origin)
    dropped = tuple(sorted(name for name in tensors if _is_no_weight(name)))
    _check_statistics(tensors, origin)
    state, unknown = _rename({name: value for name, value in tensors.items() if name not in dropped})
    if unknown:
        raise WeightsError(
            f"{origin} holds tensors that no supported network has: {_enumerate(unknown)}. Supported: {SUPPORTED}."
        )
    model = _describe(tensors, origin)
    return Conversion(model, _move_background(_turn_colours(state)), dropped)


def _modernise(name: str) -> str:
    for old, new in _OLD_POINT_REND:
        name = old.sub(new, name)
    return name


def _is_no_weight(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or name.startswith(_CELLS) or name.endswith(".num_batches_tracked")


def _refuse_other_families(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Name what the file is, where it is something else."""
    for pattern, family in _FAMILIES:
        if any(re.search(pattern, name) for name in tensors):
            raise WeightsError(f"{origin} is {family}, which cityopt has not. Supported: {SUPPORTED}.")
    if not any(name.startswith(_BODY) for name in tensors):
        raise WeightsError(f"{origin} holds no network that cityopt knows. Supported: {SUPPORTED}.")
    if not any(name.startswith("roi_heads.mask_head.") for name in tensors):
        raise WeightsError(f"{origin} is Faster R-CNN or another network without a mask head. Supported: {SUPPORTED}.")
    grouped = tensors.get(f"{_BODY}res2.0.conv2.weight")
    if grouped is not None and grouped.ndim == 4 and grouped.shape[0] != grouped.shape[1]:
        raise WeightsError(f"{origin} has a ResNeXt backbone, which cityopt has not. Supported: {SUPPORTED}.")
    if any(re.search(r"\.conv2_offset\.|fpn_lateral\d\.norm\.|\.mask_fcn\d\.norm\.", name) for name in tensors):
        raise WeightsError(f"{origin} has deformable convolutions or group norms. Supported: {SUPPORTED}.")


def _check_statistics(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Check that pixels are meant as `flavour: detectron2` gives them: BGR in 0..255, the usual mean, no division."""
    wanted = {"pixel_mean": [255 * mean for mean in IMAGE_MEAN[::-1]], "pixel_std": [1.0, 1.0, 1.0]}
    for name, values in wanted.items():
        if name in tensors:
            found = [float(value) for value in tensors[name].flatten()]
            if len(found) != 3 or any(abs(a - b) > 1e-2 for a, b in zip(found, values, strict=True)):
                raise WeightsError(
                    f"`{name}` of {origin} must be {[round(value, 3) for value in values]} (BGR), but is "
                    f"{[round(value, 3) for value in found]}. Networks for other pixels are not supported."
                )


def _rename(tensors: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Return the tensors under our names, and the names that none of ours corresponds to."""
    state, unknown = {}, []
    for name, value in tensors.items():
        for old, new in _NAMES:
            if match := old.match(name):
                number = int(match[1]) if old.groups and match[1].isdigit() else 0
                state[match.expand(new).format(number - 1, number - 2)] = value
                break
        else:
            unknown.append(name)
    return state, sorted(unknown)


def _turn_colours(state: State) -> State:
    """Let the first convolution read RGB."""
    key = "backbone.body.conv1.weight"
    return {**state, key: state[key].flip(1)} if key in state and state[key].ndim == 4 else state


def _move_background(state: State) -> State:
    """Put the background first: its row of the classifier, and offsets and masks of it that nothing reads."""
    moved = {name: value.reshape(1) if value.ndim == 0 else value for name, value in state.items()}
    for kind in ("weight", "bias"):
        scores, offsets = f"{_HEADS}box_predictor.cls_score.{kind}", f"{_HEADS}box_predictor.bbox_pred.{kind}"
        masks = f"{_HEADS}mask_predictor.mask_fcn_logits.{kind}"
        if scores in moved:
            moved[scores] = moved[scores].roll(1, dims=0)
        for name, rows in ((offsets, 4), (masks, 1)):
            if name in moved:
                moved[name] = torch.cat([torch.zeros_like(moved[name][:rows]), moved[name]])
    return moved


def _describe(tensors: Mapping[str, Tensor], origin: str) -> ModelConfig:
    """Read the config off names and shapes."""
    blocks = len({name.split(".")[3] for name in tensors if name.startswith(f"{_BODY}res4.")})
    if blocks not in _BACKBONES:
        raise WeightsError(f"the fourth stage of {origin} must have 6 or 23 blocks, but has {blocks}. {SUPPORTED}.")
    is_point_rend = any(name.startswith(f"{_HEADS}mask_head.point_head.") for name in tensors)
    settings: dict[str, Any] = {
        "family": "point_rend" if is_point_rend else "mask_rcnn",
        "backbone": _BACKBONES[blocks],
        "flavour": "detectron2",
        "weights": origin,
        "classes": _CLASSES[_count_classes(tensors, is_point_rend, origin)],
        **_describe_anchors(tensors, origin),
    }
    return validate(ModelConfig, settings, origin=origin)


def _count_classes(tensors: Mapping[str, Tensor], is_point_rend: bool, origin: str) -> int:
    """Return the number of classes on which all heads agree."""
    mask = "mask_head.point_head.predictor" if is_point_rend else "mask_head.predictor"
    rows = {
        layer: tensors[f"{_HEADS}{layer}.bias"].numel() if f"{_HEADS}{layer}.bias" in tensors else None
        for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", mask)
    }
    missing = [f"{_HEADS}{layer}.bias" for layer, count in rows.items() if count is None]
    if missing:
        raise WeightsError(f"{origin} lacks tensors of its heads: {', '.join(missing)}. Supported: {SUPPORTED}.")
    scores, offsets, masks = (count or 0 for count in rows.values())
    counts = {scores - 1, offsets // 4, masks}
    if len(counts) != 1 or scores - 1 not in _CLASSES:
        raise WeightsError(
            f"the heads of {origin} must all know 80 classes (COCO) or 8 (Cityscapes), but the classifier knows "
            f"{scores - 1}, the boxes {offsets / 4:g} and the masks {masks}. Other classes, and heads that "
            "ignore the class, are not supported."
        )
    return scores - 1


def _describe_anchors(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Any]:
    """Return the settings of the stored anchors, or of the usual ones where the file keeps none."""
    levels = [tensors.get(f"{_CELLS}{level}") for level in range(5)]
    cells = [level for level in levels if level is not None and level.ndim == 2 and level.shape[1] == 4]
    if not any(name.startswith(_CELLS) for name in tensors):
        return {"anchors": "default"}
    if len(cells) != 5 or len({len(level) for level in cells}) != 1:
        raise WeightsError(f"the anchors of {origin} must be a table of equal length for each of P2 … P6.")
    found, usual = torch.stack(cells).float(), build_cells(DEFAULT_ANCHORS.sizes, DEFAULT_ANCHORS.ratios)
    if found.shape == usual.shape and torch.allclose(found, usual, atol=1e-3):
        return {"anchors": "default"}
    width, height = (found[..., 2:] - found[..., :2]).double().unbind(dim=-1)
    table = {"sizes": (width * height).sqrt().tolist(), "ratios": (height / width).tolist()}
    return {"anchors": "explicit", "anchor_table": table}


def _enumerate(names: list[str]) -> str:
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(names[:_LONGEST_LIST]) + more
