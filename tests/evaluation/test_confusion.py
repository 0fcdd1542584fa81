"""The confusion matrix against scikit-learn's, and there and back through its text."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from cityopt.errors import DataError
from cityopt.evaluation.confusion import CLASS_NAMES, OTHER, format_confusion, parse_confusion, take_counted
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.labels import EVALUATED_LABELS

IDS = [label.id for label in EVALUATED_LABELS]


def judge(seed: int = 0) -> tuple[SemanticEvaluator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, 24, (2, 40, 60)), rng.integers(0, 34, (2, 40, 60))
    evaluator = SemanticEvaluator()
    for number in range(2):
        evaluator.add(str(number), truth[number].astype(np.uint16), found[number].astype(np.uint8))
    return evaluator, truth.ravel(), found.ravel()


def test_matrix_equals_scikit_learns() -> None:
    evaluator, truth, found = judge()
    counted = np.isin(truth, IDS)
    renamed = np.where(np.isin(found, IDS), found, -1)
    official = confusion_matrix(truth[counted], renamed[counted], labels=[*IDS, -1])[:-1]
    np.testing.assert_array_equal(take_counted(evaluator.confusion), official)


def test_text_holds_the_matrix_under_the_names() -> None:
    pixels = take_counted(judge()[0].confusion)
    text = format_confusion(pixels)
    assert text.splitlines()[0].split(",") == ["truth", *CLASS_NAMES, OTHER]
    np.testing.assert_array_equal(parse_confusion(text), pixels)


EMPTY = format_confusion(np.zeros((19, 20), int))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "truth,road\nroad,1\n",
        EMPTY.replace("0", "x"),
        EMPTY.replace("\n", ",0\n"),
        EMPTY.replace(",0\n", "\n"),
        EMPTY.replace("truth,road", "truth,street"),
    ],
)
def test_other_tables_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="confusion matrix must"):
        parse_confusion(text)
