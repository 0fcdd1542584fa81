import numpy as np
import pytest
import torch
from small_models import SMALL, decode_masks, draw_scene
from torchvision.transforms.functional import normalize

from cityopt.models import proposals
from cityopt.models.mask_rcnn import MaskRCNN


def build(**changes: object) -> MaskRCNN:
    torch.manual_seed(0)
    settings = {"score_threshold": 0.0, "num_detections": 10, **changes}
    return MaskRCNN(SMALL.model_copy(update=settings), norm="batch")


def test_loss_terms_are_those_of_mask_rcnn() -> None:
    image, target = draw_scene(0)
    losses = build().loss([image], [target])
    assert list(losses) == ["objectness", "rpn_box", "classifier", "box", "mask"]


def test_backbone_sees_normalised_images_with_zeros_around(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build(), []
    hook = model.backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    images = [torch.rand(3, 40, 70), torch.rand(3, 65, 33)]
    model.predict(images)
    hook.remove()
    (batch,) = seen
    assert batch.shape == (2, 3, 96, 96)
    for row, image in zip(batch, images, strict=True):
        _, height, width = image.shape
        expected = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(row[:, :height, :width], expected)
        assert (row[:, height:] == 0).all() and (row[:, :, width:] == 0).all()


def test_call_in_evaluation_mode_answers_as_torchvisions_detectors_do() -> None:
    model = build().eval()
    images = [draw_scene(0)[0], draw_scene(1, size=(70, 65))[0]]
    predictions, answers = model.predict(images), model(images)
    for image, prediction, answer in zip(images, predictions, answers, strict=True):
        count, size = len(prediction.scores), tuple(image.shape[1:])
        assert count == 10
        assert set(answer) == {"boxes", "labels", "scores", "masks"}
        assert answer["masks"].shape == (count, 1, *size) and answer["masks"].dtype == torch.float32
        assert answer["masks"].min() >= 0 and answer["masks"].max() <= 1
        np.testing.assert_array_equal(answer["boxes"].numpy(), prediction.boxes_xyxy)
        np.testing.assert_array_equal(answer["labels"].numpy(), prediction.classes)
        masks = decode_masks(prediction.masks).transpose(2, 0, 1)
        np.testing.assert_array_equal(answer["masks"][:, 0].numpy() >= 0.5, masks.astype(bool))


def test_call_with_targets_returns_the_losses() -> None:
    image, target = draw_scene(0)
    model = build()
    torch.manual_seed(1)
    expected = model.loss([image], [target])
    torch.manual_seed(1)
    assert model([image], [target]) == expected


def test_training_keeps_twice_as_many_proposals_of_each_level_before_suppression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposals, "batched_nms", lambda boxes, *_: torch.arange(len(boxes)))
    model, counts = build(rpn_pre_nms=3, rpn_post_nms=1000), []
    for training in (True, False):
        model.train(training)
        features, sizes = model._extract([torch.rand(3, 64, 64)])
        logits, offsets, anchors = model.rpn(features)
        (boxes,) = model.rpn.propose(logits, [torch.zeros_like(o) for o in offsets], anchors, sizes)
        counts.append(len(boxes))
    assert counts == [4 * 6 + 3, 5 * 3]  # P6 has one cell and three anchors


def test_large_image_runs_through_torchvisions_operator_too() -> None:
    image, target = draw_scene(0, size=(544, 608), num_instances=3)
    model = build()
    assert all(value.isfinite() for value in model.loss([image], [target]).values())
    assert model.eval().predict([image])[0].size == (544, 608)
