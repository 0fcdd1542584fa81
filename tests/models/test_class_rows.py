"""Heads of COCO's classes as heads for Cityscapes', against the rows that the classes' names say."""

import pytest
import torch
from small_models import SMALL
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from cityopt.labels import COCO_NAMES, THING_NAMES
from cityopt.models.build import build_model
from cityopt.models.class_rows import adapt_rows, find_sources, number_classes
from cityopt.models.weights import State

BOX, MASK = "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."
POINT_REND = SMALL.model_copy(update={"family": "point_rend", "coarse_head_channels": 32})
TORCHVISION = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def draw_state(config) -> State:
    torch.manual_seed(1)
    state = build_model(config).state_dict()
    return {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}


def fine_tune(config, tmp_path, rider_from: str) -> tuple[State, State, State]:
    """Return the state of COCO's classes, that of a network which starts from it, and that of one born alike."""
    coco = draw_state(config.model_copy(update={"classes": "coco"}))
    torch.save(coco, tmp_path / "coco.pt")
    torch.manual_seed(2)
    born = build_model(config).state_dict()
    torch.manual_seed(2)
    settings = {"weights": str(tmp_path / "coco.pt"), "rider_from": rider_from, "backbone_norm": "batch"}
    return coco, build_model(config.model_copy(update=settings)).state_dict(), born


@pytest.mark.parametrize("rider_from", ["person", "random"])
def test_rows_of_mask_rcnn_are_those_of_the_same_classes(rider_from, tmp_path):
    coco, found, born = fine_tune(SMALL, tmp_path, rider_from)
    for layer, size in (("cls_score.", 1), ("bbox_pred.", 4)):
        for kind in ("weight", "bias"):
            name = f"{BOX}{layer}{kind}"
            assert torch.equal(found[name][:size], coco[name][:size])  # the background
    for thing, label in enumerate(THING_NAMES, start=1):
        source = "person" if label == "rider" else label
        row = COCO_NAMES.index(source) + 1
        for name, size in ((f"{BOX}cls_score.", 1), (f"{BOX}bbox_pred.", 4), (MASK, 1)):
            for kind in ("weight", "bias"):
                own = found[name + kind][thing * size : (thing + 1) * size]
                wanted = coco[name + kind][row * size : (row + 1) * size]
                if label == "rider" and rider_from == "random":
                    wanted = born[name + kind][thing * size : (thing + 1) * size]
                assert torch.equal(own, wanted), (label, name)
    assert torch.equal(found["roi_heads.box_head.fc6.weight"], coco["roi_heads.box_head.fc6.weight"])


@pytest.mark.parametrize("rider_from", ["person", "random"])
def test_rows_and_columns_of_point_rend_are_those_of_the_same_classes(rider_from, tmp_path):
    coco, found, born = fine_tune(POINT_REND, tmp_path, rider_from)
    coarse, point = "roi_heads.mask_head.coarse_head.prediction.", "roi_heads.mask_head.point_head."
    width = POINT_REND.mask_head_channels
    for thing, label in enumerate(THING_NAMES):
        is_random = label == "rider" and rider_from == "random"
        row = COCO_NAMES.index("person" if label == "rider" else label)
        source, place = (born, thing) if is_random else (coco, row)
        wanted = source[f"{coarse}bias"].reshape(-1, 7, 7)[place]
        assert torch.equal(found[f"{coarse}bias"].reshape(-1, 7, 7)[thing], wanted)
        assert torch.equal(found[f"{point}predictor.bias"][thing], source[f"{point}predictor.bias"][place])
        own = found[f"{point}fc2.weight"][:, width + thing]
        assert torch.equal(own, torch.zeros_like(own) if is_random else coco[f"{point}fc2.weight"][:, width + row])
        if not is_random:
            features = [state[f"{point}predictor.weight"][k, :width] for state, k in ((found, thing), (coco, row))]
            assert torch.equal(*features)
    assert torch.equal(found[f"{point}fc1.bias"], coco[f"{point}fc1.bias"])


def test_no_row_is_copied_when_that_is_asked_for(tmp_path):
    coco, found, born = fine_tune(SMALL, tmp_path, "none")
    assert torch.equal(found[f"{BOX}cls_score.weight"], born[f"{BOX}cls_score.weight"])
    assert torch.equal(found["backbone.body.conv1.weight"], coco["backbone.body.conv1.weight"])


def test_state_of_cityscapes_classes_stays_as_it_is():
    state = draw_state(SMALL)
    assert adapt_rows(state, state, "person") is None


def test_rows_of_torchvision_are_its_category_ids():
    assert [TORCHVISION[row] for row in find_sources(90, "person")] == [
        "__background__",
        *("person" if label == "rider" else label for label in THING_NAMES),
    ]
    assert find_sources(90, "random")[THING_NAMES.index("rider") + 1] is None


def test_torchvisions_rows_without_category_are_left_out():
    rows = torch.arange(91.0)
    state = {f"{BOX}cls_score.bias": rows, f"{BOX}bbox_pred.bias": rows.repeat_interleave(4), f"{MASK}bias": rows}
    for name, value in number_classes(state).items():
        kept = [TORCHVISION[int(row)] for row in value[:: 4 if "bbox" in name else 1]]
        assert kept == ["__background__", *COCO_NAMES]
