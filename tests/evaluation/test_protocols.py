import numpy as np
import pytest
from test_coco_ap import make_prediction, make_scene

from cityopt.errors import ConfigError
from cityopt.evaluation.protocols import PROTOCOLS, open_judges, parse_protocols
from cityopt.evaluation.semantic import SemanticEvaluator, paint_prediction
from cityopt.labels import THING_LABELS


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ("cityscapes", "coco", "semantic")),
        ("coco", ("coco",)),
        ("boundary,coco", ("boundary", "coco")),
        (" semantic ,coco,semantic", ("semantic", "coco")),
    ],
)
def test_protocols_are_read_in_their_order_once_each(text, names):
    assert parse_protocols(text) == names


@pytest.mark.parametrize("text", ["", "coco,", "COCO", "coco;semantic"])
def test_unknown_protocol_is_refused_with_those_there_are(text):
    with pytest.raises(ConfigError, match="cityscapes, coco, semantic"):
        parse_protocols(text)


def test_names_of_different_protocols_never_meet():
    names = [name for judge in open_judges(tuple(PROTOCOLS)) for name in judge.summarize()]
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} == {"cityscapes", "coco", "semantic_things", "boundary"}


def test_semantic_protocol_judges_the_painted_masks_of_an_instance_model():
    rng = np.random.default_rng(0)
    (judge,) = open_judges(["semantic"])
    evaluator = SemanticEvaluator(THING_LABELS, prefix="semantic_things")
    for number in range(3):
        raster, prediction = make_scene(rng, (50, 70), 6, 20)
        judge.add(str(number), raster, prediction)
        evaluator.add(str(number), raster, paint_prediction(prediction, score=0.5))
    assert 0 < judge.summarize()["semantic_things/miou"] < 1
    np.testing.assert_equal(judge.summarize(), evaluator.summarize())
    judge.add("none", np.full((5, 5), 7), make_prediction((5, 5), [], [], []))
