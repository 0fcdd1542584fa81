import numpy as np
import pytest

from cityopt.evaluation.class_maps import average_without_rider, guess_riders, map_prediction
from cityopt.labels import COCO_NAMES, THING_NAMES
from cityopt.models.masks import Prediction

PERSON, RIDER, BICYCLE = (THING_NAMES.index(name) + 1 for name in ("person", "rider", "bicycle"))
SIZE = (100, 200)


def predict(classes, boxes=None, scores=None) -> Prediction:
    count = len(classes)
    boxes = np.zeros((count, 4)) if boxes is None else np.array(boxes)
    scores = np.linspace(0.9, 0.6, count) if scores is None else np.array(scores)
    masks = [{"size": list(SIZE), "counts": str(number).encode()} for number in range(count)]
    return Prediction(boxes.astype(np.float32), scores.astype(np.float32), np.array(classes, np.int64), masks, SIZE)


def test_classes_of_both_datasets_keep_their_names_and_others_go():
    found = map_prediction(predict(range(1, len(COCO_NAMES) + 1)))
    kept = [COCO_NAMES[int(code["counts"])] for code in found.masks]
    assert [THING_NAMES[index - 1] for index in found.classes] == kept
    assert sorted(kept) == sorted(name for name in THING_NAMES if name != "rider")
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert len(found.boxes_xyxy) == len(found.classes) == 7


def test_nothing_is_mapped_when_nothing_was_found():
    assert len(map_prediction(predict([])).classes) == len(guess_riders(predict([])).classes) == 0


@pytest.mark.parametrize(
    ("bicycle", "score", "is_rider"),
    [
        ((40, 50, 90, 95), 0.9, True),  # below the person, half of it shared
        ((40, 50, 90, 95), 0.4, False),  # hardly a bicycle
        ((120, 50, 170, 95), 0.9, False),  # elsewhere
        ((40, 10, 90, 60), 0.9, False),  # behind the person, who stands lower
        ((62, 50, 112, 95), 0.9, False),  # shares too little: 3 of 25 px across
    ],
)
def test_person_is_a_rider_when_on_a_bicycle(bicycle, score, is_rider):
    found = guess_riders(predict([PERSON, BICYCLE], [(40, 5, 65, 80), bicycle], [0.95, score]))
    assert found.classes.tolist() == [RIDER if is_rider else PERSON, BICYCLE]


def test_mean_without_rider_leaves_riders_and_absent_classes_out():
    metrics = {"x/ap": 0.3, "x/ap_small": 0.1} | {f"x/ap/class/{name}": np.nan for name in THING_NAMES}
    metrics |= {"x/ap/class/person": 0.4, "x/ap/class/rider": 0.0, "x/ap/class/car": 0.5}
    assert average_without_rider(metrics) == {"x/ap_without_rider": pytest.approx(0.45)}
    metrics |= {"x/ap/class/person": np.nan, "x/ap/class/car": np.nan}
    assert np.isnan(average_without_rider(metrics)["x/ap_without_rider"])
