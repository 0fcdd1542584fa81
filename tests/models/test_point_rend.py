import pytest
import torch
from small_models import SMALL, draw_scene
from torch import Tensor
from torch.nn import functional as F

from cityopt.models.point_rend import PointRend, PointRendHeads, PointRendMaskHead, read_coarse, read_level
from cityopt.models.points import place_grid, sample_maps
from cityopt.models.roi_heads import Regions

CONFIG = SMALL.model_copy(update={"family": "point_rend", "coarse_head_channels": 32})
PUBLISHED = {
    "coarse_head.reduce_spatial_dim_conv.weight": lambda k: (256, 256, 2, 2),
    "coarse_head.reduce_spatial_dim_conv.bias": lambda k: (256,),
    "coarse_head.fc1.weight": lambda k: (1024, 12544),
    "coarse_head.fc1.bias": lambda k: (1024,),
    "coarse_head.fc2.weight": lambda k: (1024, 1024),
    "coarse_head.fc2.bias": lambda k: (1024,),
    "coarse_head.prediction.weight": lambda k: (k * 49, 1024),
    "coarse_head.prediction.bias": lambda k: (k * 49,),
    "point_head.fc1.weight": lambda k: (256, 256 + k, 1),
    "point_head.fc1.bias": lambda k: (256,),
    "point_head.fc2.weight": lambda k: (256, 256 + k, 1),
    "point_head.fc2.bias": lambda k: (256,),
    "point_head.fc3.weight": lambda k: (256, 256 + k, 1),
    "point_head.fc3.bias": lambda k: (256,),
    "point_head.predictor.weight": lambda k: (k, 256 + k, 1),
    "point_head.predictor.bias": lambda k: (k,),
}


def build_heads(**changes: object) -> PointRendHeads:
    torch.manual_seed(0)
    heads = PointRendHeads(CONFIG.model_copy(update=changes))
    for parameter in heads.mask_head.parameters():  # predictors that say something
        torch.nn.init.normal_(parameter, std=0.3)
    return heads


def draw_regions() -> tuple[list[Tensor], Regions, dict[str, Tensor]]:
    _, target = draw_scene(3, size=(64, 96))
    features = [torch.randn(1, 16, 64 // stride, 96 // stride, requires_grad=stride == 4) for stride in (4, 8, 16, 32)]
    boxes, count = target["boxes_xyxy"], len(target["classes"])
    zeros = torch.zeros(count, dtype=torch.int64)
    regions = Regions(boxes, zeros, target["classes"], torch.arange(count), torch.zeros(count, 4))
    return features, regions, dict(target)


@pytest.mark.parametrize(("classes", "count", "millions"), [("cityscapes", 8, 14.77), ("coco", 80, 18.46)])
def test_head_has_the_published_names_and_shapes(classes: str, count: int, millions: float) -> None:
    with torch.device("meta"):
        head = PointRendMaskHead(
            CONFIG.model_copy(
                update={
                    "classes": classes,
                    "fpn_channels": 256,
                    "mask_head_channels": 256,
                    "coarse_head_channels": 1024,
                }
            )
        )
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {name: shape(count) for name, shape in PUBLISHED.items()}
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_point_head_is_a_chain_of_convolutions_that_sees_the_coarse_logits_each_time() -> None:
    head = build_heads().mask_head.point_head
    fine, coarse = torch.randn(30, 16), torch.randn(30, 8)
    x = fine.T[None]
    for layer in (head.fc1, head.fc2, head.fc3):
        x = F.relu(layer(torch.cat([x, coarse.T[None]], dim=1)))
    expected = head.predictor(torch.cat([x, coarse.T[None]], dim=1))[0].T
    torch.testing.assert_close(head(fine, coarse), expected, atol=1e-4, rtol=1e-4)


def test_level_and_coarse_logits_are_read_where_the_points_of_each_box_are() -> None:
    level, boxes = torch.randn(2, 4, 16, 24), torch.tensor([[0.0, 0, 96, 64], [8, 16, 40, 24]])
    points = torch.rand(2, 9, 2)
    found = read_level(level, boxes, torch.tensor([0, 1]), points)
    for row, box in enumerate(boxes):
        at = (points[row] * (box[2:] - box[:2]) + box[:2]) / 4
        torch.testing.assert_close(found[row], sample_maps(level[row : row + 1], at, torch.zeros(9).long()))
    coarse = torch.randn(2, 5, 7, 7)
    grid = place_grid(7).expand(2, -1, 2)
    torch.testing.assert_close(read_coarse(coarse, grid), coarse.flatten(2).transpose(1, 2))


def test_training_points_are_three_quarters_uncertain_and_inside_their_boxes() -> None:
    torch.manual_seed(1)
    ramp = torch.linspace(-3, 3, 7).expand(2, 7, 7)  # the border of the mask is the vertical line x = .5
    points = build_heads().mask_head.draw_points(ramp)
    assert points.shape == (2, 196, 2) and (points >= 0).all() and (points <= 1).all()
    logits = F.grid_sample(ramp[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0].abs()
    assert logits[:, :147].mean() < 0.5 < 1 < logits[:, 147:].mean()
    assert (logits[:, :147].diff(dim=1) > -1e-5).all()


def test_loss_reaches_both_heads_and_the_finest_level() -> None:
    heads, (features, regions, target) = build_heads(), draw_regions()
    losses = heads.mask_losses(features, regions, torch.zeros(len(regions.boxes), 4), [target])
    assert list(losses) == ["mask", "mask_point"]
    (gradient,) = torch.autograd.grad(losses["mask_point"], features[0], retain_graph=True)
    assert gradient.abs().sum() > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.mask_head.parameters())


def test_loss_is_taken_in_predicted_boxes_when_they_are_wanted() -> None:
    features, regions, target = draw_regions()
    offsets, values = torch.full((len(regions.boxes), 4), 2.0), {}
    for wanted in (True, False):
        torch.manual_seed(5)
        heads = build_heads(predicted_mask_boxes=wanted)
        torch.manual_seed(6)
        values[wanted] = heads.mask_losses(features, regions, offsets, [target])
    assert values[True]["mask"].item() != values[False]["mask"].item()
    size = regions.boxes[:, 2:] - regions.boxes[:, :2]
    centre = regions.boxes[:, :2] + size / 2 + 0.2 * size  # 2 / 10 of a side, and exp(2 / 5) as long
    half = size * torch.tensor(0.4).exp() / 2
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    moved = Regions(
        torch.cat([centre - half, centre + half], 1).clamp(min=0).minimum(limit),
        *(getattr(regions, name) for name in ("images", "classes", "instances", "wanted")),
    )
    torch.manual_seed(5)
    heads = build_heads(predicted_mask_boxes=False)
    torch.manual_seed(6)
    again = heads.mask_losses(features, moved, offsets, [target])
    for name, value in again.items():
        assert value.item() == pytest.approx(values[True][name].item(), rel=1e-4)


def test_masks_are_the_same_when_few_regions_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, (features, regions, _) = build_heads().eval(), draw_regions()
    arguments = (features, regions.boxes, regions.images, regions.classes)
    with torch.no_grad():
        whole = heads.segment(*arguments)
        monkeypatch.setattr("cityopt.models.point_rend._POINTS_AT_ONCE", 1)
        parts = heads.segment(*arguments)
    assert whole.shape == (len(regions.boxes), 224, 224)
    assert ((whole - parts).abs() > 1e-3).float().mean() < 1e-3


def test_network_without_detections_asks_the_mask_head_nothing() -> None:
    model = PointRend(CONFIG.model_copy(update={"score_threshold": 1.0}), norm="batch").eval()
    model.roi_heads.mask_head.refine = None  # calling it would fail
    ((found, masks),) = model._find([torch.rand(3, 64, 96)])
    assert len(found.boxes) == 0 and masks.shape == (0, 224, 224)
