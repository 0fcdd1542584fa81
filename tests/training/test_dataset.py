import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityopt.config import ImageSet, RunConfig
from cityopt.errors import DataError
from cityopt.training.dataset import pick_facts, prepare_data, survey_dataset


def test_survey_dataset_finds_both_splits_and_remembers(tree: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    survey = survey_dataset(tree, tmp_path, lambda done, total: seen.append((done, total)))
    assert sorted((fact.split, fact.city) for fact in survey.facts) == sorted(
        [("train", "aachen")] * 6 + [("train", "bonn")] * 2 + [("val", "lund")] * 2
    )
    assert survey.frames.keys() == {fact.name for fact in survey.facts}
    assert seen[-1] == (10, 10)
    assert survey_dataset(tree, tmp_path) == survey


def test_survey_dataset_changes_its_fingerprint_when_a_label_does(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    before = survey_dataset(tree, tmp_path / "cache")
    assert survey_dataset(copy, tmp_path / "cache").fingerprint == before.fingerprint
    frame = survey_dataset(copy, tmp_path / "cache").frames["lund_000000_000019"]
    assert frame.instance_ids is not None
    raster = np.asarray(Image.open(frame.instance_ids)).copy()
    raster[0, 0] = 23
    Image.fromarray(raster).save(frame.instance_ids)
    assert survey_dataset(copy, tmp_path / "cache").fingerprint != before.fingerprint


def test_survey_dataset_needs_no_val_until_it_is_picked(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "copy", ignore=shutil.ignore_patterns("val"))
    survey = survey_dataset(tmp_path / "copy", tmp_path)
    assert len(survey.facts) == 8
    with pytest.raises(DataError, match="split val must have images"):
        pick_facts(survey, ImageSet(split="val"))


def test_prepare_data_keeps_holdout_cities_out_of_training(config: RunConfig) -> None:
    data = prepare_data(config)
    assert {name.split("_")[0] for name in data.train.names} == {"aachen"}
    assert {name.split("_")[0] for name in data.validation.names} == {"bonn"}
    assert tuple(fact.name for fact in data.validation_facts) == data.validation.names
    assert data.train_hash != data.validation_hash
    assert data.train.images.shape == (6, 64, 128, 3)


def test_survey_dataset_refuses_one_name_in_train_and_val(tree: Path, tmp_path: Path) -> None:
    """A frame of val would stand in for that of train: trials would learn from what judges them."""
    shutil.copytree(tree, tmp_path / "copy")
    for path in sorted((tmp_path / "copy").glob("*/val/lund/lund_000000*")):
        path.rename(path.with_name(path.name.replace("lund", "aachen")))
    with pytest.raises(DataError, match=r"train/aachen/aachen_000000_.*val/lund/aachen_000000_"):
        survey_dataset(tmp_path / "copy", tmp_path)
