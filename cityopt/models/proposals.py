"""Region proposals: where in an image something may be, of no particular class.

The first half of Mask R-CNN. A small head scores the anchors of every pyramid level and shifts them;
the best ones after non-maximum suppression go on to `roi_heads`.

Shapes: B images, N anchors of an image over all levels, A anchors per cell.

Source: Ren et al., Faster R-CNN (1506.01497), section 3.1; Lin et al., FPN (1612.03144), section 4.1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from cityopt.config import DEFAULT_ANCHORS, ModelConfig
from cityopt.models.backbone import STRIDES
from cityopt.models.boxes import (
    build_cells,
    clip_each,
    decode_boxes,
    encode_boxes,
    match_boxes,
    place_anchors,
    sample_boxes,
)
from cityopt.models.kernels import has_triton

_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_SAMPLES = 256
_MIN_SIDE_PX = 1e-3
_MAX_IOU = 0.7

Suppress = Callable[[Tensor, Tensor, float], Tensor]
"""See `suppression_triton.suppress_groups`."""


class RegionProposals(nn.Module):
    """The region proposal network of all pyramid levels."""

    cells: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = config.anchor_table or DEFAULT_ANCHORS
        self.register_buffer("cells", build_cells(table.sizes, table.ratios), persistent=False)
        self.head = RPNHead(config.fpn_channels, len(table.sizes[0]))
        self.num_before, self.num_after = config.rpn_pre_nms, config.rpn_post_nms

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Score and shift all anchors.

        Returns:
            Per level the logits `(B, n)`, the offsets `(B, n, 4)`, and the anchors `(n, 4)`.
        """
        logits, offsets = self.head(list(features))
        num_images = len(features[0])
        flat_logits = [x.permute(0, 2, 3, 1).reshape(num_images, -1).float() for x in logits]
        flat_offsets = [_flatten_offsets(x).float() for x in offsets]
        grids = [(x.shape[-2], x.shape[-1]) for x in features]
        anchors = place_anchors(self.cells, grids, STRIDES)
        return flat_logits, flat_offsets, list(torch.split(anchors, [x.shape[1] for x in flat_logits]))

    @torch.no_grad()
    def propose(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Return per image at most `rpn_post_nms` boxes `(n, 4)`, best first, clipped to its size."""
        num_before = self.num_before * (2 if self.training else 1)
        boxes, scores = [], []
        for logit_BN, offset_BN4, anchor_N4 in zip(logits, offsets, anchors, strict=True):
            score, index_BK = logit_BN.topk(min(num_before, logit_BN.shape[1]), dim=1)
            chosen = offset_BN4.gather(1, index_BK[..., None].expand(-1, -1, 4))
            boxes.append(clip_each(decode_boxes(chosen, anchor_N4[index_BK], _WEIGHTS), sizes))
            scores.append(score)
        if boxes[0].is_cuda and has_triton():
            from cityopt.models.suppression_triton import suppress_groups

            return suppress_at_once(boxes, scores, count=self.num_after, suppress=suppress_groups)
        return suppress_one_by_one(boxes, scores, count=self.num_after)

    def loss(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Sequence[Tensor],
        truths: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return `objectness` and `rpn_box` over the sampled anchors of all images."""
        logit_BN, offset_BN4, anchor_N4 = (
            torch.cat(list(logits), 1),
            torch.cat(list(offsets), 1),
            torch.cat(list(anchors)),
        )
        rows, labels, positives, wanted = [], [], [], []
        for image, truth in enumerate(truths):
            index, state = match_boxes(truth, anchor_N4, low=0.3, high=0.7, keep_best=True)
            positive, negative = sample_boxes(state, count=_SAMPLES, positive_fraction=0.5)
            rows.append(torch.cat([positive, negative]) + image * len(anchor_N4))
            labels.append(torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]))
            positives.append(positive + image * len(anchor_N4))
            if len(truth):
                wanted.append(encode_boxes(truth[index[positive]], anchor_N4[positive], _WEIGHTS))
        row, positive = torch.cat(rows), torch.cat(positives)
        objectness = F.binary_cross_entropy_with_logits(logit_BN.flatten()[row], torch.cat(labels).float())
        found = offset_BN4.reshape(-1, 4)[positive]
        target = torch.cat(wanted) if wanted else torch.zeros_like(found)
        rpn_box = F.smooth_l1_loss(found, target, beta=1 / 9, reduction="sum") / len(row)
        return {"objectness": objectness, "rpn_box": rpn_box}


def suppress_one_by_one(boxes: Sequence[Tensor], scores: Sequence[Tensor], *, count: int) -> list[Tensor]:
    """Drop empty boxes and those that a better one of the same level covers, image after image.

    Args:
        boxes: Per level `(B, n, 4)`.
        scores: Per level `(B, n)`, descending.
        count: Boxes to keep.

    Returns:
        Per image at most `count` boxes `(n, 4)`, best first.
    """
    level_K = torch.cat([torch.full_like(score[0], level) for level, score in enumerate(scores)])
    kept = []
    for box, score in zip(torch.cat(list(boxes), 1), torch.cat(list(scores), 1), strict=True):
        wide = _is_wide(box)
        box, score, level = box[wide], score[wide], level_K[wide]
        kept.append(box[batched_nms(box, score, level, _MAX_IOU)[:count]])
    return kept


def suppress_at_once(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], *, count: int, suppress: Suppress
) -> list[Tensor]:
    """Do what `suppress_one_by_one` does, with a kernel that has all images and levels at work side by side."""
    num_images, longest = len(boxes[0]), max(box.shape[1] for box in boxes)
    box_BLK4 = torch.stack([F.pad(box, (0, 0, 0, longest - box.shape[1])) for box in boxes], dim=1)
    score_BLK = torch.stack([F.pad(score, (0, longest - score.shape[1])) for score in scores], dim=1)
    wide_BLK = _is_wide(box_BLK4)  # what was padded is empty
    kept_BN = suppress(box_BLK4.flatten(0, 1), wide_BLK.flatten(0, 1), _MAX_IOU).reshape(num_images, -1)
    score_BN = score_BLK.flatten(1).masked_fill(~kept_BN, -torch.inf)
    best = score_BN.topk(min(count, score_BN.shape[1]), dim=1).indices
    chosen = box_BLK4.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4))
    counts = kept_BN.sum(dim=1).clamp(max=count).tolist()
    return [box[:number] for box, number in zip(chosen, counts, strict=True)]


def _is_wide(boxes: Tensor) -> Tensor:
    return ((boxes[..., 2:] - boxes[..., :2]) >= _MIN_SIDE_PX).all(dim=-1)


def _flatten_offsets(x: Tensor) -> Tensor:
    """Turn `(B, A * 4, H, W)` into `(B, H * W * A, 4)`."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels // 4, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
