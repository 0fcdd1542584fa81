"""Checkpoints as detectron2's model zoo lays them out, full size, with weights that anybody can draw again.

Every tensor depends on its own name, its shape and the seed alone: a legacy RandomState stream, seeded with
crc32(name) + seed, gives odd integers in [-65535, 65535]; filters that read rectified activations are centred
exactly, in integers; then one multiplication and rounding to float32. Only exactly rounded operations are used, so
the arrays are the same bits on every machine, and the golden files next to this hold what detectron2 itself says to
them.
"""

import math
import pickle
import zlib
from pathlib import Path

import numpy as np

AUTHOR = "synthetic weights in the layout of the detectron2 model zoo"

# ---- calibration constants: plain numbers, valid for all seeds -----------------------------
# A filter's weights have standard deviation gain / sqrt(fan_in).
GAIN_STEM = 0.03  # input is 0..255 BGR minus the mean, never divided by a deviation
GAIN_CONV = 1.7  # centred filter on rectified input
BRANCH = 0.22  # share of a residual branch; small values keep rounding errors small
GAIN_LATERAL = 0.8
GAIN_FPN_OUT = {2: 0.5, 3: 0.7, 4: 0.9, 5: 1.1}  # coarser levels speak up
GAIN_LINEAR_IN = 1.4  # first layer of a head, reads FPN features
GAIN_HEAD = 1.7  # later layers of a head, read rectified values
GAIN_OBJECTNESS = 2.4
GAIN_ANCHOR_DELTAS = 0.36
GAIN_CLS_SCORE = 4.0
GAIN_BBOX_PRED = 1.2
GAIN_MASK_PRED = 3.4
GAIN_COARSE_PRED = 2.0
GAIN_POINT_FINE = 1.4
GAIN_POINT_COARSE = 0.7
GAIN_POINT_PRED = 2.4
BACKGROUND_BIAS = {8: 10.5, 80: 11.75}

HALF = 65536
UNIT = math.sqrt((HALF * HALF - 1) / 3.0)  # standard deviation of the odd integers


def draw(name, shape, seed):
    """Odd integers, uniform in [-65535, 65535], as int64."""
    rs = np.random.RandomState((zlib.crc32(name.encode("ascii")) + seed) & 0xFFFFFFFF)
    u = rs.random_sample(int(np.prod(shape)))
    return (2 * np.floor(u * HALF).astype(np.int64) - (HALF - 1)).reshape(shape)


def weight(name, shape, seed, gain, centred, fan_axes=None):
    """Filter bank with standard deviation gain / sqrt(fan_in)."""
    axes = tuple(range(1, len(shape))) if fan_axes is None else fan_axes
    fan_in = int(np.prod([shape[a] for a in axes]))
    k = draw(name, shape, seed)
    scale = gain / math.sqrt(fan_in) / UNIT
    if centred:
        k = k * fan_in - k.sum(axis=axes, keepdims=True)
        scale /= fan_in
    return (k * scale).astype(np.float32)


def between(name, shape, seed, low, high):
    """Uniform values in (low, high)."""
    k = draw(name, shape, seed)
    return (0.5 * (low + high) + k * (0.5 * (high - low) / HALF)).astype(np.float32)


class Builder:
    def __init__(self, seed):
        self.seed = seed
        self.model = {}

    def conv_bn(self, name, shape, gain, scale, centred=True):
        m, s = self.model, self.seed
        m[name + ".weight"] = weight(name + ".weight", shape, s, gain, centred)
        n = (shape[0],)
        norm = name + ".norm."
        m[norm + "weight"] = between(norm + "weight", n, s, 0.8 * scale, 1.2 * scale)
        m[norm + "bias"] = between(norm + "bias", n, s, -0.1 * scale, 0.1 * scale)
        m[norm + "running_mean"] = between(norm + "running_mean", n, s, -0.1, 0.1)
        m[norm + "running_var"] = between(norm + "running_var", n, s, 0.7, 1.3)
        m[norm + "running_var"][5::16] *= np.float32(1e-4)  # here eps = 1e-5 changes the result
        m[norm + "weight"][5::16] *= np.float32(1e-2)

    def layer(self, name, shape, gain, centred, bias):
        m, s = self.model, self.seed
        m[name + ".weight"] = weight(name + ".weight", shape, s, gain, centred)
        m[name + ".bias"] = between(name + ".bias", (shape[0],), s, -bias, bias)


def backbone(b):
    p = "backbone.bottom_up."
    b.conv_bn(p + "stem.conv1", (64, 3, 7, 7), GAIN_STEM, 1.0, centred=False)
    c_in = 64
    for stage, (blocks, mid) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for i in range(blocks):
            q = f"{p}res{stage}.{i}."
            c_out = 4 * mid
            if i == 0:
                b.conv_bn(q + "shortcut", (c_out, c_in, 1, 1), GAIN_CONV, 1.0)
            b.conv_bn(q + "conv1", (mid, c_in, 1, 1), GAIN_CONV, 1.0)
            b.conv_bn(q + "conv2", (mid, mid, 3, 3), GAIN_CONV, 1.0)
            b.conv_bn(q + "conv3", (c_out, mid, 1, 1), GAIN_CONV, BRANCH)
            c_in = c_out
    for level, c in ((2, 256), (3, 512), (4, 1024), (5, 2048)):
        b.layer(f"backbone.fpn_lateral{level}", (256, c, 1, 1), GAIN_LATERAL, True, 0.1)
        b.layer(f"backbone.fpn_output{level}", (256, 256, 3, 3), GAIN_FPN_OUT[level], False, 0.1)


def proposals(b):
    p = "proposal_generator.rpn_head."
    b.layer(p + "conv", (256, 256, 3, 3), GAIN_LINEAR_IN, False, 0.1)
    b.layer(p + "objectness_logits", (3, 256, 1, 1), GAIN_OBJECTNESS, True, 0.2)
    b.layer(p + "anchor_deltas", (12, 256, 1, 1), GAIN_ANCHOR_DELTAS, True, 0.1)
    ratios = np.array([0.5, 1.0, 2.0])
    for i in range(5):  # stored by the zoo files although no parameter: three boxes per level
        size = 2.0 ** (5 + i)
        w = np.sqrt(size * size / ratios)
        h = ratios * w
        a = np.stack([-w / 2, -h / 2, w / 2, h / 2], axis=1)
        b.model[f"proposal_generator.anchor_generator.cell_anchors.{i}"] = a.astype(np.float32)


def box_head(b, k):
    p = "roi_heads."
    b.layer(p + "box_head.fc1", (1024, 256 * 49), GAIN_LINEAR_IN, False, 0.1)
    b.layer(p + "box_head.fc2", (1024, 1024), GAIN_HEAD, True, 0.1)
    b.layer(p + "box_predictor.cls_score", (k + 1, 1024), GAIN_CLS_SCORE, True, 0.2)
    b.layer(p + "box_predictor.bbox_pred", (4 * k, 1024), GAIN_BBOX_PRED, True, 0.2)
    b.model[p + "box_predictor.cls_score.weight"][k] *= np.float32(0.25)  # background is last
    b.model[p + "box_predictor.cls_score.bias"][k] = np.float32(BACKGROUND_BIAS[k])


def mask_head(b, k):
    p = "roi_heads.mask_head."
    b.layer(p + "mask_fcn1", (256, 256, 3, 3), GAIN_LINEAR_IN, False, 0.1)
    for i in (2, 3, 4):
        b.layer(p + f"mask_fcn{i}", (256, 256, 3, 3), GAIN_HEAD, True, 0.1)
    d = p + "deconv"  # (in, out, 2, 2): mostly common to the four places, else masks are a chequer
    same = weight(d + ".weight/same", (256, 256, 1, 1), b.seed, GAIN_HEAD, True, (0,))
    own = weight(d + ".weight/own", (256, 256, 2, 2), b.seed, GAIN_HEAD, True, (0,))
    b.model[d + ".weight"] = np.float32(0.9375) * same + np.float32(0.3125) * own
    b.model[d + ".bias"] = between(d + ".bias", (256,), b.seed, -0.1, 0.1)
    b.layer(p + "predictor", (k, 256, 1, 1), GAIN_MASK_PRED, True, 0.2)


def point_rend_head(b, k, old):
    coarse = "roi_heads.mask_coarse_head." if old else "roi_heads.mask_head.coarse_head."
    point = "roi_heads.mask_point_head." if old else "roi_heads.mask_head.point_head."
    fc = "coarse_mask_fc" if old else "fc"
    head = Builder(b.seed)  # drawn under the current names, so --old-names changes no value
    p = "roi_heads.mask_head.coarse_head."
    head.layer(p + "reduce_spatial_dim_conv", (256, 256, 2, 2), GAIN_LINEAR_IN, False, 0.1)
    head.layer(p + "fc1", (1024, 256 * 49), GAIN_HEAD, True, 0.1)
    head.layer(p + "fc2", (1024, 1024), GAIN_HEAD, True, 0.1)
    head.layer(p + "prediction", (k * 49, 1024), GAIN_COARSE_PRED, True, 0.2)
    q = "roi_heads.mask_head.point_head."
    for i in (1, 2, 3, 4):  # the fourth is the predictor
        name = q + (f"fc{i}" if i < 4 else "predictor")
        n = 256 if i < 4 else k
        gain = (GAIN_POINT_FINE, GAIN_HEAD, GAIN_HEAD, GAIN_POINT_PRED)[i - 1]
        fine = weight(name + ".weight/fine", (n, 256, 1), b.seed, gain, i > 1)
        rough = weight(name + ".weight/coarse", (n, k, 1), b.seed, GAIN_POINT_COARSE, False)
        head.model[name + ".weight"] = np.concatenate([fine, rough], axis=1)
        head.model[name + ".bias"] = between(name + ".bias", (n,), b.seed, -0.1, 0.1)
    for name, value in head.model.items():
        if name.startswith(p):
            rest = name[len(p) :]
            if rest.startswith("fc"):
                rest = fc + rest[2:]
            name = coarse + rest
        else:
            name = point + name[len(q) :]
        b.model[name] = value


def build(kind, seed=0, num_classes=8, old_names=False):
    b = Builder(seed)
    b.model["pixel_mean"] = np.array([103.530, 116.280, 123.675], np.float32).reshape(3, 1, 1)
    b.model["pixel_std"] = np.ones((3, 1, 1), np.float32)
    backbone(b)
    proposals(b)
    box_head(b, num_classes)
    if kind == "mask_rcnn":
        mask_head(b, num_classes)
    else:
        point_rend_head(b, num_classes, old_names)
    return b.model


def write_checkpoint(path: Path, model: dict, *, protocol: int = 2) -> Path:
    """Pickle arrays under the module name of numpy 1, as published files do, whichever numpy runs."""
    data = pickle.dumps({"model": model, "__author__": AUTHOR}, protocol=protocol)
    rest = b".multiarray\n_reconstruct\n"  # named once, then referred to by number
    path.write_bytes(data.replace(b"cnumpy._core" + rest, b"cnumpy.core" + rest, 1))
    return path
