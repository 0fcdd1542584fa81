"""The best epoch of a run and what its epochs add up to."""

import pytest

from cityopt.tracking.curves import pick_epoch, sum_seconds
from cityopt.tracking.run_folder import Record

MIOU, ROAD = "val/semantic/miou", "val/semantic/iou/class/road"


@pytest.mark.parametrize(("direction", "epoch"), [("maximize", 2), ("minimize", 3)])
def test_epoch_is_the_first_of_the_best_with_all_of_its_metrics(direction, epoch):
    values = {1: 0.2, 2: 0.4, 3: 0.1, 4: 0.4, 5: 0.1}
    records = [Record(step, 0, {MIOU: value, ROAD: step / 10}) for step, value in values.items()]
    records += [Record(step, 9, {"later": float(step)}) for step in values]  # of a step that was recorded in two parts
    assert pick_epoch(records, MIOU, direction) == (
        epoch,
        {MIOU: values[epoch], ROAD: epoch / 10, "later": float(epoch)},
    )


def test_seconds_are_those_of_the_finished_epochs():
    timed = [Record(step, 0, {"system/epoch_s": 0.5 * step}) for step in (1, 2, 3)]
    assert sum_seconds([*timed, Record(3, 9, {MIOU: 0.1})]) == 3.0
