"""Two models side by side on images that are known in numbers."""

import math

import numpy as np
import pytest

from cityopt.evaluation.cityscapes_matching import ImageMatches
from cityopt.evaluation.transfer import FoundObject, Judged
from cityopt.training.transfer_comparison import _average_objects, _score_both


def find(classes: list[int], iou: float) -> ImageMatches:
    """Return what an image adds whose objects are all found with the same IoU."""
    count = len(classes)
    ones, numbers = np.ones(count), np.arange(count)
    return ImageMatches(np.array(classes), np.array(classes), ones, iou * ones, numbers, 0 * ones)


def test_score_is_not_there_when_a_draw_loses_a_class():
    """A mean over less classes is another score, and would pass for a difference."""
    first, second = (Judged(matches=[find([1, 3], iou), find([1], iou), find([1], iou)]) for iou in (0.62, 0.82))
    whole = _score_both(first, second, np.arange(3))
    assert whole == pytest.approx((0.3, 0.7)) and _score_both(first, second, np.array([0, 0, 2])) == whole
    assert all(map(math.isnan, _score_both(first, second, np.array([1, 2, 2]))))
    empty = Judged(matches=[find([], 0.5)])
    assert all(map(math.isnan, _score_both(empty, empty, np.arange(1))))


def test_objects_are_averaged_by_image_over_those_that_both_found():
    def found(**values: float) -> dict[int, FoundObject]:
        code = {"size": [1, 1], "counts": b""}
        return {int(name[1:]): FoundObject(1, code, value, value / 2) for name, value in values.items()}

    first = Judged(found={"a": found(n0=0.6, n1=0.8, n2=0.9), "b": found(n0=0.7)})
    second = Judged(found={"a": found(n0=0.7, n1=1.0), "b": found(n1=0.9)})
    own, other = _average_objects(first, second, lambda x: x.mask_iou)
    np.testing.assert_allclose(own, [0.7, np.nan])
    np.testing.assert_allclose(other, [0.85, np.nan])
