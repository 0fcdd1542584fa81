"""The confusion matrix as a table of text: written beside a semantic model's checkpoint, read by the report.

Shapes: C = 19 evaluated classes; pixels (C, C + 1), rows ground truth, columns prediction, the last one "other": void
and classes that no evaluation counts.
"""

import csv
import io

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import DataError
from cityopt.labels import EVALUATED_LABELS

FILE = "confusion.csv"
OTHER = "other"
CLASS_NAMES = tuple(label.name for label in EVALUATED_LABELS)
_HEADER = ["truth", *CLASS_NAMES, OTHER]
_IDS = np.array([label.id for label in EVALUATED_LABELS])


def take_counted(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pixels (C, C + 1) that count, of a `SemanticEvaluator`'s matrix over label ids."""
    rows = confusion[_IDS]
    counted = rows[:, _IDS]
    return np.column_stack([counted, rows.sum(axis=1) - counted.sum(axis=1)])


def format_confusion(pixels: NDArray[np.int64]) -> str:
    """Return the matrix (C, C + 1) as CSV: a row of names, then a row per class of the ground truth."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows([name, *row] for name, row in zip(CLASS_NAMES, pixels.tolist(), strict=True))
    return stream.getvalue()


def parse_confusion(text: str) -> NDArray[np.int64]:
    """Return the matrix (C, C + 1) of a CSV. Raises DataError: it is another table."""
    rows = list(csv.reader(io.StringIO(text)))
    if rows[:1] != [_HEADER] or [row[:1] for row in rows[1:]] != [[name] for name in CLASS_NAMES]:
        raise DataError(
            f"a confusion matrix must have a row and a column for each of the {len(CLASS_NAMES)} classes, and a last "
            f"column {OTHER!r}."
        )
    try:
        pixels = [[int(cell) for cell in row[1:]] for row in rows[1:]]
        return np.array(pixels).reshape(len(CLASS_NAMES), len(_HEADER) - 1)
    except ValueError as error:
        raise DataError(f"a confusion matrix must hold counts of pixels, but: {error}.") from error
