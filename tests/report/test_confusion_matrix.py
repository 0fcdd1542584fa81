"""The confusion matrix on the page: the shares of what a run wrote, in the order of the classes."""

import re

import numpy as np
from fake_studies import Fate, make_study, name_run

from cityopt.evaluation.confusion import CLASS_NAMES, FILE, format_confusion
from cityopt.report.confusion import write_confusion
from cityopt.report.findings import read_findings

ROAD, CAR, BUS = (CLASS_NAMES.index(name) for name in ("road", "car", "bus"))


def read_cells(markup: str) -> list[str]:
    return re.findall(r'data-tip="([^"]+)"', markup)


def test_matrix_shows_the_best_trials_shares_of_the_classes_that_are_there(tmp_path):
    make_study(tmp_path, [Fate((0.1,)), Fate((0.3,))])
    pixels = np.zeros((19, 20), int)
    pixels[ROAD, ROAD], pixels[ROAD, CAR], pixels[CAR, CAR], pixels[CAR, BUS] = 90, 10, 1, 3
    artifact = tmp_path / "runs" / name_run("streets", 1) / "artifacts" / FILE
    artifact.write_text(format_confusion(pixels))
    page = write_confusion(read_findings(tmp_path, "streets"))
    assert "Trial 1 on the held-out cities" in page
    assert read_cells(page) == [
        "90.0% of road is right",
        "10.0% of road is taken for car",
        "0.0% of road is taken for bus",
        "0.0% of car is taken for road",
        "25.0% of car is right",
        "75.0% of car is taken for bus",
    ]


def test_matrix_is_left_out_when_no_run_has_one_or_it_is_broken(tmp_path):
    make_study(tmp_path, [Fate((0.1,))])
    assert write_confusion(read_findings(tmp_path, "streets")) is None
    (tmp_path / "runs" / name_run("streets", 0) / "artifacts" / FILE).write_text("truth,road\n")
    assert write_confusion(read_findings(tmp_path, "streets")) is None
