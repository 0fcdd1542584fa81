"""Converted networks say what detectron2 says: one test per row of the golden files' table of tolerances."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from detectron2_writer import build, write_checkpoint
from golden_files import KINDS, Golden, read_golden
from numpy.typing import NDArray
from small_models import decode_masks
from torch import Tensor
from torchvision.ops import box_iou

from cityopt.models.mask_rcnn import MaskRCNN
from cityopt.models.mask_targets import sample_labels, sample_masks
from cityopt.models.masks import encode_masks
from cityopt.models.point_rend import choose_channel, read_level
from cityopt.models.points import enlarge, place_grid, place_points, select_cells, subdivide
from cityopt.models.roi_heads import Detections, Regions, cut_regions, find_levels
from cityopt.training.checkpoint import load_model
from cityopt.training.conversion import convert_weights

pytestmark = pytest.mark.slow
ISO_SHAPES = ((96, 160), (48, 80), (24, 40), (12, 20), (6, 10))
SCENES = [(kind, image) for kind in KINDS for image in read_golden(kind).images]
POINT_SCENES = [scene for scene in SCENES if scene[0] == "point_rend"]


@pytest.fixture(scope="module", name="networks")
def _networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MaskRCNN]:
    """Both networks, on the way that a user's file takes."""
    folder, found = tmp_path_factory.mktemp("zoo"), {}
    for kind in KINDS:
        source = write_checkpoint(folder / "model_final.pkl", build(kind), protocol=3)
        convert_weights(source, folder / "converted.pt")
        found[kind] = load_model(folder / "converted.pt")[0]
    return found


@dataclass
class Scene:
    """An image, what detectron2 says to it, and what we do; computed when first wanted."""

    network: MaskRCNN
    golden: Golden
    name: str

    def __getitem__(self, array: str) -> Tensor:
        return torch.from_numpy(self.golden[f"{self.name}_{array}"])

    def rows(self, array: str) -> NDArray[np.int64]:
        return self.golden.rows(f"{self.name}_{array}")

    @cached_property
    def size(self) -> tuple[int, int]:
        return tuple(self["image"].shape[:2])

    @cached_property
    def image(self) -> Tensor:
        return self["image"].permute(2, 0, 1).float() / 255

    @cached_property
    @torch.no_grad()
    def features(self) -> list[Tensor]:
        return self.network._extract([self.image])[0]

    @cached_property
    @torch.no_grad()
    def proposals(self) -> Tensor:
        return self.network.rpn.propose(*self.network.rpn(self.features), [self.size])[0]

    def find_masks(self, rows: Tensor) -> Tensor:
        found = Detections(self["det_boxes"][rows], self["det_scores"][rows], self["det_classes"][rows].long() + 1)
        return self.network.roi_heads.find_masks(self.features, [found])[0]

    @cached_property
    def masks(self) -> Tensor:
        """Masks of the stored boxes whose pasted masks are stored."""
        return self.find_masks(self["mask_index"].long())

    def paste(self, masks: Tensor, rows: Tensor) -> NDArray[np.bool_]:
        codes = encode_masks(masks.numpy(), self["det_boxes"][rows].numpy(), self.size)
        return decode_masks(codes).transpose(2, 0, 1) > 0

    @cached_property
    def stored_masks(self) -> NDArray[np.bool_]:
        bits = self["mask_bits"].numpy()
        return np.unpackbits(bits, axis=1, count=self.size[0] * self.size[1]).reshape(-1, *self.size) > 0


@pytest.fixture(scope="module", name="all_scenes")
def _all_scenes(networks: dict[str, MaskRCNN]) -> dict[tuple[str, str], Scene]:
    return {(kind, name): Scene(networks[kind], read_golden(kind), name) for kind, name in SCENES}


@pytest.fixture(name="scene")
def _scene(all_scenes: dict[tuple[str, str], Scene], request: pytest.FixtureRequest) -> Scene:
    return all_scenes[request.param]


on_each_image = pytest.mark.parametrize("scene", SCENES, indirect=True, ids="-".join)
on_point_rend = pytest.mark.parametrize("scene", POINT_SCENES, indirect=True, ids="-".join)
on_mask_rcnn = pytest.mark.parametrize(
    "scene", [s for s in SCENES if s not in POINT_SCENES], indirect=True, ids="-".join
)
on_each_kind = pytest.mark.parametrize("kind", KINDS)


def measure_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest stored value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def check_background_first(
    logits: Tensor, deltas: Tensor, wanted_logits: Tensor, wanted_deltas: Tensor, limit: float
) -> None:
    assert measure_difference(logits.roll(-1, dims=1), wanted_logits) < limit
    assert measure_difference(deltas[:, 4:], wanted_deltas) < limit


def check_detections(found: Detections, scene: Scene, *, iou: float, score: float, box_px: float) -> None:
    """Pair detections by class and IoU; each must have exactly one partner."""
    overlap = box_iou(found.boxes, scene["det_boxes"])
    overlap[found.classes[:, None] - 1 != scene["det_classes"].long()[None]] = 0
    best, partner = overlap.max(dim=1)
    assert len(found.boxes) == len(scene["det_boxes"]) == len(set(partner.tolist()))
    assert best.min() > iou
    assert (found.scores - scene["det_scores"][partner]).abs().max() < score
    assert (found.boxes - scene["det_boxes"][partner]).abs().max() < box_px


@on_each_kind
def test_written_checkpoint_is_the_one_that_detectron2_read(kind: str) -> None:
    import zlib

    model, golden = build(kind), read_golden(kind)
    assert sorted(model) == golden["checkpoint_names"].tolist()
    assert [zlib.crc32(model[name].tobytes()) for name in sorted(model)] == golden["checkpoint_crc32"].tolist()


@on_each_image
def test_pyramid_levels_agree(scene: Scene) -> None:
    for level, step, feature in zip(range(2, 7), (8, 4, 2, 1, 1), scene.features, strict=True):
        assert list(feature.shape[1:]) == scene[f"p{level}_shape"].tolist()
        assert measure_difference(feature[0, ::16, ::step, ::step], scene[f"p{level}_sample"]) < 3e-5


@on_each_image
def test_box_head_agrees_when_proposals_are_given(scene: Scene) -> None:
    boxes = scene["rpn_boxes"][:50]
    with torch.no_grad():
        found = scene.network.roi_heads._classify(scene.features, boxes, torch.zeros(50, dtype=torch.int64))
    check_background_first(*found, scene["box_class_logits"], scene["box_deltas"], 3e-5)


@on_each_image
def test_every_proposal_is_found(scene: Scene) -> None:
    assert box_iou(scene["rpn_boxes"], scene.proposals).amax(dim=1).min() > 0.99
    assert len(scene.proposals) == len(scene["rpn_boxes"])


@on_each_image
def test_detections_agree_when_proposals_are_given(scene: Scene) -> None:
    (found,) = scene.network.roi_heads.detect(scene.features, [scene["rpn_boxes"]], [scene.size])
    check_detections(found, scene, iou=0.99, score=1e-4, box_px=5e-3)


@on_each_image
def test_detections_agree_from_end_to_end(scene: Scene) -> None:
    (found,) = scene.network.roi_heads.detect(scene.features, [scene.proposals], [scene.size])
    check_detections(found, scene, iou=0.995, score=5e-4, box_px=0.02)


@on_mask_rcnn
def test_mask_probabilities_agree_when_boxes_are_given(scene: Scene) -> None:
    rows = torch.from_numpy(scene.rows("mask_probs"))
    assert (scene.find_masks(rows) - scene["mask_probs"]).abs().max() < 2e-4


@on_mask_rcnn
def test_paste_of_stored_probabilities_has_no_wrong_pixel(scene: Scene) -> None:
    rows = torch.from_numpy(scene.rows("mask_probs"))
    pasted = scene.paste(scene["mask_probs"], rows)
    assert pasted.sum(axis=(1, 2)).tolist() == scene["mask_area"][rows].tolist()
    positions = {row: number for number, row in enumerate(scene["mask_index"].tolist())}
    shown = [(number, positions[row]) for number, row in enumerate(rows.tolist()) if row in positions]
    assert shown
    for number, position in shown:
        np.testing.assert_array_equal(pasted[number], scene.stored_masks[position])


@on_each_image
def test_paste_of_own_probabilities_agrees(scene: Scene) -> None:
    wrong = (scene.paste(scene.masks, scene["mask_index"].long()) ^ scene.stored_masks).sum()
    assert wrong <= scene.stored_masks.sum() * (0.001 if (scene.masks.shape[-1] == 224) else 0.0005)


@on_point_rend
def test_coarse_and_point_logits_agree_when_boxes_are_given(scene: Scene) -> None:
    rows = scene["mask_index"].long()[scene.rows("coarse_logits")]
    found = judge_points(scene.network, scene.features, scene["det_boxes"][rows], scene["points"])
    assert measure_difference(found[0], scene["coarse_logits"]) < 5e-5
    assert measure_difference(found[1], scene["point_logits"]) < 5e-5
    rows = scene["mask_index"].long()[scene.rows("grid28_logits")]
    grid = judge_grid(scene.network, scene.features, scene["det_boxes"][rows], scene["det_classes"][rows].long())
    assert measure_difference(grid, scene["grid28_logits"]) < 5e-5


@on_point_rend
def test_final_masks_agree_but_for_a_few_cells(scene: Scene) -> None:
    rows = scene["mask224_index"].long()[scene.rows("mask_probs224_u16")]
    check_fine_masks(scene.find_masks(rows), scene["mask_probs224_u16"])


@on_each_kind
def test_empty_image_has_nothing_in_it(networks: dict[str, MaskRCNN], kind: str) -> None:
    golden, network = read_golden(kind), networks[kind]
    image = torch.from_numpy(golden["empty_image"]).permute(2, 0, 1).float() / 255
    (prediction,) = network.predict([image])
    assert len(prediction.scores) == 0 and prediction.masks == []
    with torch.no_grad():
        features, sizes = network._extract([image])
        proposals = network.rpn.propose(*network.rpn(features), sizes)[0]
        logits, _ = network.roi_heads._classify(features, proposals, torch.zeros(len(proposals), dtype=torch.int64))
    assert len(proposals) == golden["empty_rpn_count"]
    assert float(logits.softmax(dim=1)[:, 1:].max()) == pytest.approx(float(golden["empty_max_score"]), abs=1e-4)


@pytest.fixture(scope="module", name="drawn")
def _drawn() -> list[Tensor]:
    """Features without an image."""
    return [
        torch.from_numpy(
            (np.random.RandomState(1000 + level).random_sample((1, 256, *shape)) * 4 - 2).astype(np.float32)
        )
        for level, shape in enumerate(ISO_SHAPES)
    ]


@on_each_kind
def test_single_modules_agree_on_drawn_features(networks: dict[str, MaskRCNN], drawn: list[Tensor], kind: str) -> None:
    golden, network = read_golden(kind), networks[kind]

    def get(name: str) -> Tensor:
        return torch.from_numpy(golden[f"iso_{name}"])

    boxes, zeros = get("boxes"), torch.zeros(40, dtype=torch.int64)
    assert (find_levels(boxes) + 2).tolist() == get("levels").tolist()
    pooled = cut_regions(drawn, boxes, zeros, 7)[golden.rows("iso_pool7_sample"), ::32]
    assert measure_difference(pooled, get("pool7_sample")) < 3e-5
    with torch.no_grad():
        found = network.roi_heads._classify(drawn, boxes, zeros)
        check_background_first(*found, get("class_logits"), get("box_deltas"), 3e-5)
        objectness, deltas = network.rpn.head(drawn)
        proposals = network.rpn.propose(*network.rpn(drawn), [tuple(get("image_size").tolist())])[0]
    assert measure_difference(objectness[4][0], get("rpn_p6_objectness")) < 3e-5
    assert measure_difference(deltas[4][0], get("rpn_p6_deltas")) < 3e-5
    assert len(proposals) == 1000
    assert box_iou(get("rpn_boxes"), proposals).amax(dim=1).min() > 0.99


def test_mask_head_agrees_on_drawn_features(networks: dict[str, MaskRCNN], drawn: list[Tensor]) -> None:
    golden, network = read_golden("mask_rcnn"), networks["mask_rcnn"]
    for name, count in (("iso_pool14_sample", None), ("iso_mask_logits", None)):
        rows = golden.rows(name)
        boxes = torch.from_numpy(golden["iso_boxes"])[rows]
        zeros = torch.zeros(len(rows), dtype=torch.int64)
        if name == "iso_pool14_sample":
            found = cut_regions(drawn, boxes, zeros, 14)[:, ::32]
        else:
            with torch.no_grad():
                found = network.roi_heads.segment(
                    drawn, boxes, zeros, torch.from_numpy(golden["iso_classes"])[rows].long() + 1
                )
        assert measure_difference(found, torch.from_numpy(golden[name])) < 3e-5, count


@pytest.fixture(name="judged")
def _judged(networks: dict[str, MaskRCNN], drawn: list[Tensor]) -> "Judged":
    return Judged(networks["point_rend"], read_golden("point_rend"), drawn)


@dataclass
class Judged:
    """PointRend on drawn features."""

    network: MaskRCNN
    golden: Golden
    features: list[Tensor]

    def get(self, name: str) -> Tensor:
        return torch.from_numpy(self.golden[f"iso_{name}"])

    def boxes(self, name: str) -> Tensor:
        return self.get("boxes")[self.golden.rows(f"iso_{name}")]

    def classes(self, name: str) -> Tensor:
        return self.get("classes")[self.golden.rows(f"iso_{name}")].long()


def test_point_modules_agree_on_drawn_features(judged: Judged) -> None:
    boxes = judged.boxes("pool14_sample")
    zeros = torch.zeros(len(boxes), dtype=torch.int64)
    cut = read_level(judged.features[0], boxes, zeros, place_grid(14).expand(len(boxes), -1, 2))[..., ::32]
    assert measure_difference(cut.permute(0, 2, 1).reshape(-1, 8, 14, 14), judged.get("pool14_sample")) < 2e-4
    boxes, points = judged.boxes("points"), judged.get("points")
    fine = read_level(judged.features[0], boxes, torch.zeros(len(boxes), dtype=torch.int64), points)[..., ::32]
    assert measure_difference(fine.permute(0, 2, 1), judged.get("fine_sample")) < 2e-4
    coarse, logits = judge_points(judged.network, judged.features, boxes, points)
    assert measure_difference(coarse, judged.get("coarse_logits")) < 2e-4
    assert measure_difference(logits, judged.get("point_logits")) < 2e-4
    grid = judge_grid(judged.network, judged.features, judged.boxes("grid28_logits"), judged.classes("grid28_logits"))
    assert measure_difference(grid, judged.get("grid28_logits")) < 2e-4


def test_first_refinement_decides_the_same_cells(judged: Judged) -> None:
    grid = judge_grid(judged.network, judged.features, judged.boxes("step1_indices"), judged.classes("step1_indices"))
    for found, wanted in zip(select_cells(enlarge(grid), 784)[0], judged.get("step1_indices"), strict=True):
        assert len(set(found.tolist())) == 784
        assert len(set(found.tolist()) - set(wanted.tolist())) <= 4
    stored = judged.get("step1_logits")
    boxes, classes = judged.boxes("step1_logits"), judged.classes("step1_logits")
    zeros, head = torch.zeros(len(boxes), dtype=torch.int64), judged.network.roi_heads.mask_head
    with torch.no_grad():
        coarse = head.find_coarse(judged.features[0], boxes, zeros)
        refined = subdivide(
            grid[: len(boxes)],
            lambda points: choose_channel(head.decide(judged.features[0], boxes, zeros, coarse, points), classes),
            steps=1,
            count=784,
        )
    differs = (refined - stored).abs() > 2e-4 * stored.abs().max()
    assert differs.flatten(1).sum(dim=1).max() <= 8  # 4 cells that changed places, on either side


@pytest.mark.skipif("iso_mask224_index" not in read_golden("point_rend").arrays, reason="needs CITYOPT_GOLDEN_DIR")
def test_final_masks_agree_on_drawn_features(judged: Judged) -> None:
    rows = judged.get("mask224_index").long()
    boxes, classes = judged.get("boxes")[rows], judged.get("classes")[rows].long() + 1
    with torch.no_grad():
        found = judged.network.roi_heads.segment(judged.features, boxes, torch.zeros_like(classes), classes).sigmoid()
    check_fine_masks(found, judged.get("mask_probs224_u16"))


@pytest.fixture(name="objects")
def _objects() -> Regions:
    """Eight objects, each alone in an image of its own, as proposals of themselves."""
    golden = read_golden("mask_rcnn")
    boxes, classes = torch.from_numpy(golden["train_boxes"]), torch.from_numpy(golden["train_classes"]).long() + 1
    return Regions(boxes, torch.arange(8), classes, torch.zeros(8, dtype=torch.int64), torch.zeros(8, 4))


@pytest.fixture(name="truth")
def _truth() -> list[Tensor]:
    bits = read_golden("mask_rcnn")["train_mask_bits"]
    masks = np.unpackbits(bits, axis=1, count=384 * 640).reshape(8, 384, 640)
    return [torch.from_numpy(mask.astype(np.int32)) for mask in masks]


def test_mask_targets_and_loss_agree(
    networks: dict[str, MaskRCNN], drawn: list[Tensor], objects: Regions, truth: list[Tensor]
) -> None:
    """detectron2 cuts its targets at one half; ours are soft, and equal when cut."""
    golden = read_golden("mask_rcnn")
    wanted = sample_masks(truth, objects.images, objects.instances, objects.boxes, side=28) >= 0.5
    np.testing.assert_array_equal(wanted.numpy(), golden["train_targets28"] > 0)
    with torch.no_grad():
        logits = networks["mask_rcnn"].roi_heads.segment(
            drawn, objects.boxes, torch.zeros(8, dtype=torch.int64), objects.classes
        )
    assert measure_difference(logits, torch.from_numpy(golden["train_mask_logits"])) < 3e-5
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted.float())
    assert float(loss) == pytest.approx(float(golden["train_loss_mask"]), abs=1e-4)


def test_point_targets_and_losses_agree(
    networks: dict[str, MaskRCNN],
    drawn: list[Tensor],
    objects: Regions,
    truth: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole loss of PointRend's head, with detectron2's draws in place of ours."""
    golden, heads = read_golden("point_rend"), networks["point_rend"].roi_heads

    def get(name: str) -> Tensor:
        return torch.from_numpy(golden[f"train_{name}"])

    draws = iter([get("candidates"), get("uniform")] * 2)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    wanted = sample_masks(truth, objects.images, objects.instances, objects.boxes, side=7) >= 0.5
    np.testing.assert_array_equal(wanted.numpy(), golden["train_targets7"] > 0)
    zeros = torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        coarse = heads.mask_head.find_coarse(drawn[0], objects.boxes, zeros)
        own = coarse[torch.arange(8), objects.classes - 1]
        points = heads.mask_head.draw_points(own)
        logits = heads.mask_head.decide(drawn[0], objects.boxes, zeros, coarse, points)
    assert measure_difference(own, get("coarse_logits")) < 2e-4
    for found, stored in zip(points, get("points"), strict=True):
        assert {tuple(p) for p in found[:147].tolist()} == {tuple(p) for p in stored[:147].tolist()}
        assert torch.equal(found[147:], stored[147:])
    labels = sample_labels(truth, objects.images, objects.instances, place_points(get("points"), objects.boxes))
    assert (labels - get("point_labels")).abs().max() < 1e-5
    own_logits = choose_channel(logits, objects.classes - 1)
    assert measure_difference(own_logits.sort().values, get("point_logits").sort().values) < 2e-4
    monkeypatch.setattr(heads, "predicted_mask_boxes", False)
    each = [drawn[0].expand(8, -1, -1, -1)]
    with torch.no_grad():
        losses = heads.mask_losses(each, objects, objects.wanted, [{"instance_map": m} for m in truth])
    assert float(losses["mask"]) == pytest.approx(float(golden["train_loss_mask"]), abs=1e-4)
    assert float(losses["mask_point"]) == pytest.approx(float(golden["train_loss_mask_point"]), abs=1e-4)


@torch.no_grad()
def judge_points(network: MaskRCNN, features: list[Tensor], boxes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coarse logits `(R, K, 7, 7)` and those of points `(R, K, P)`."""
    zeros, head = torch.zeros(len(boxes), dtype=torch.int64), network.roi_heads.mask_head
    coarse = head.find_coarse(features[0], boxes, zeros)
    return coarse, head.decide(features[0], boxes, zeros, coarse, points).transpose(1, 2)


def judge_grid(network: MaskRCNN, features: list[Tensor], boxes: Tensor, channel: Tensor) -> Tensor:
    """Return the logits `(R, 28, 28)` of one class per box, before any refinement."""
    grid = place_grid(28).expand(len(boxes), -1, 2)
    logits = judge_points(network, features, boxes, grid)[1].transpose(1, 2)
    return choose_channel(logits, channel).reshape(-1, 28, 28)


def check_fine_masks(found: Tensor, stored_u16: Tensor) -> None:
    """A cell at the border of the chosen ones may change places, and its neighbours with it: so shares, no maximum."""
    stored = stored_u16.to(torch.float32) / 65535
    assert found.shape == stored.shape
    assert ((found - stored).abs() > 1e-3).float().mean() < 0.005
    assert ((found >= 0.5) != (stored >= 0.5)).float().mean() < 0.001
