"""Mean and spread over folds, beside numpy's."""

import csv
import io

import numpy as np
import pytest

from cityopt.training.fold_scores import name_metrics, summarize_folds, write_table

MIOU, ROAD, LOSS = "val/semantic/miou", "val/semantic/iou/class/road", "train/loss/total"


def draw_folds(seed, count):
    rng = np.random.default_rng(seed)
    return [{MIOU: rng.random(), ROAD: rng.random(), LOSS: rng.random(), "system/epoch_s": 1.0} for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_mean_and_sample_deviation_are_numpys(count):
    folds = draw_folds(count, count)
    spreads = summarize_folds(folds, MIOU)
    assert list(spreads) == [MIOU, ROAD]
    for name, spread in spreads.items():
        values = np.array([fold[name] for fold in folds])
        assert spread.mean == pytest.approx(values.mean(), abs=1e-15)
        assert spread.std == pytest.approx(values.std(ddof=1), abs=1e-15)
        assert spread.num_folds == count


def test_fold_without_a_value_is_left_out_and_counted():
    first, second, third = draw_folds(0, 3)
    del second[ROAD], first[ROAD]
    spreads = summarize_folds([first, second, third], MIOU)
    assert (spreads[ROAD].mean, spreads[ROAD].std, spreads[ROAD].num_folds) == (third[ROAD], None, 1)
    assert name_metrics(spreads).keys() == {
        "crossval/semantic/miou/mean",
        "crossval/semantic/miou/std",
        "crossval/semantic/iou/class/road/mean",
    }


def test_objective_is_summed_up_when_it_is_no_validation_metric():
    folds = draw_folds(1, 4)
    metrics = name_metrics(summarize_folds(folds, LOSS))
    assert metrics["crossval/train/loss/total/std"] == pytest.approx(np.std([f[LOSS] for f in folds], ddof=1))


def test_table_holds_every_fold_when_one_lacks_a_metric():
    folds = draw_folds(2, 3)
    del folds[1][ROAD]
    spreads = summarize_folds(folds, MIOU)
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(write_table(spreads, folds)))}
    assert rows.keys() == {MIOU, ROAD}
    assert [float(rows[MIOU][f"fold_{number}"]) for number in (1, 2, 3)] == [fold[MIOU] for fold in folds]
    assert rows[ROAD]["fold_2"] == "" and rows[ROAD]["num_folds"] == "2"
    assert float(rows[ROAD]["std"]) == pytest.approx(np.std([folds[0][ROAD], folds[2][ROAD]], ddof=1), abs=1e-15)
