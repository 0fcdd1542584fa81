"""On photographs, after a short training: what the official scripts find in the exported files is what evaluate says.

Runs where `CITYOPT_PHOTOS_DIR` names a tree in Cityscapes' layout with labels for train and val; README says how.
"""

import json
import os
from pathlib import Path

import pytest
from command_line import read_runs, run
from official_scripts import score_classes, score_export

PHOTOS = os.environ.get("CITYOPT_PHOTOS_DIR", "")
STUDIES = Path(__file__).parents[1] / "studies"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS, reason="CITYOPT_PHOTOS_DIR names no photographs"),
]
SETTINGS: dict[str, list[str]] = {
    "tiny": [
        *("data.size=[180,240]", "training.epochs=3", "training.batch_size=2", "training.learning_rate=0.005"),
        *("model.stem_channels=16", "model.fpn_channels=32", "model.box_head_channels=64", "model.roi_samples=64"),
        *("model.mask_head_channels=16", "model.rpn_pre_nms=100", "model.rpn_post_nms=50", "model.num_detections=50"),
        "search.baselines=[{training.learning_rate: 0.005, training.weight_decay: 0.01}]",
    ],
    "tiny_unet": ["data.size=[120,160]", "training.epochs=3"],
}


def list_options(name: str) -> list[str]:
    """Return the options that give a tiny study forty photographs to train on, and one trial."""
    common = ["data.num_images=40", "data.num_holdout=4", "data.holdout_fraction=0.28"]
    return [word for setting in [*common, *SETTINGS[name]] for word in ("--set", setting)]


@pytest.mark.parametrize(
    ("name", "score", "metric"),
    [("tiny", score_export, "val/coco/bbox/ap50"), ("tiny_unet", score_classes, "val/semantic/miou")],
)
def test_official_scripts_find_in_the_export_what_evaluate_says(name, score, metric, tmp_path):
    study, store = STUDIES / f"{name}.yaml", tmp_path / "store"
    swept = run(
        *("sweep", "--study", study, "--store", store, "--data", PHOTOS, "--trials", "1", "--device", "cpu"),
        *list_options(name),
    )
    assert swept.code == 0, swept
    run_id = read_runs(store, name)["trial-0000"].info.run_id
    answer = run(
        *("evaluate", "--model", run_id, "--store", store, "--data", PHOTOS, "--device", "cpu", "--json"),
        *("--export", tmp_path / "out"),
    )
    assert (answer.code, answer.errors) == (0, "")
    found, official = json.loads(answer.output), score(tmp_path / "out", Path(PHOTOS), "val")
    for key, value in official.items():
        assert found[key] == pytest.approx(value, abs=1e-9) if value == value else found[key] is None, key
    assert official[metric] > 0  # something was found, so that there was something to compare
