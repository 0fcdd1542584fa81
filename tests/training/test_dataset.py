import shutil
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from cityopt.config import RunConfig
from cityopt.data.loaders import build_loader
from cityopt.data.roots import place_scenes
from cityopt.data.synthetic import write_synthetic
from cityopt.errors import DataError
from cityopt.image_set import ImageSet, Span
from cityopt.training.dataset import pick_facts, prepare_data, survey_coarse, survey_dataset


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


@pytest.fixture(scope="module", name="scenes")
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic tree with coarse labels, also of train, and 6 images of train_extra."""
    root = tmp_path_factory.mktemp("coarse") / "tree"
    write_synthetic(root, num_images=12, size=(64, 128), seed=2, with_coarse=True)
    return root


def settle_scenes(config: RunConfig, root: Path, cache: Path, images: ImageSet) -> RunConfig:
    """Point a training at a tree: training images by a rule, validation on a holdout under fine labels."""
    data = config.data.model_copy(update={"root": str(root)})
    return config.model_copy(update={"data": data, "cache": str(cache), "train_set": images})


@pytest.mark.parametrize("split", ["train", "train_extra"])
def test_prepare_data_opens_coarse_labels_in_a_cache_of_their_own(
    split: str, config: RunConfig, scenes: Path, tmp_path: Path
) -> None:
    """Against the label files themselves, read by the official table: coarse void is nothing to learn."""
    images = ImageSet(split=split, labels="coarse")
    data = prepare_data(settle_scenes(config, scenes, tmp_path, images))
    fine = prepare_data(settle_scenes(config, scenes, tmp_path, ImageSet()))
    assert data.train.path != fine.train.path and data.validation.path == fine.validation.path
    assert data.train_fingerprint != fine.train_fingerprint == fine.fingerprint
    assert data.fingerprint == fine.fingerprint  # of the fine labels: that which a study is bound to
    paths = sorted(scenes.glob(f"gtCoarse/{split}/*/*_labelIds.png"))
    assert [path.name.removesuffix("_gtCoarse_labelIds.png") for path in paths] == list(data.train.names)
    loader = build_loader(data.train, range(len(paths)), data=config.data, batch_size=len(paths), seed=0, epoch=1,
                          train=False, task="semantic")  # fmt: skip
    (batch,) = loader
    table = np.zeros(256, dtype=np.uint8)
    for label in official_labels:
        if label.id >= 0:
            table[label.id] = label.trainId
    shares = []
    for path, target in zip(paths, batch.targets, strict=True):
        expected = table[np.asarray(Image.open(path))]
        np.testing.assert_array_equal(target["label_map"].numpy(), expected)
        shares.append((expected == 255).mean())
    assert 0.1 < np.mean(shares) < 0.9


def test_prepare_data_makes_synthetic_scenes_where_they_are_missing(config: RunConfig, tmp_path: Path) -> None:
    """As on a machine that joins a study: the same scenes as where it began. Another root is left missing."""
    recipe = config.data.synthetic.model_copy(update={"num_images": 6, "size": (64, 128)})
    study = config.model_copy(update={"data": config.data.model_copy(update={"synthetic": recipe, "num_holdout": 1})})
    root = place_scenes(recipe, tmp_path / "cache")
    data = prepare_data(settle_scenes(study, root, tmp_path / "cache", ImageSet()))
    write_synthetic(tmp_path / "tree", num_images=6, size=(64, 128), seed=recipe.seed)
    assert data.fingerprint == survey_dataset(tmp_path / "tree", tmp_path).fingerprint
    with pytest.raises(DataError, match="nowhere"):
        prepare_data(settle_scenes(study, tmp_path / "nowhere", tmp_path / "cache", ImageSet()))


def test_prepare_data_picks_nested_images_of_train_extra(config: RunConfig, scenes: Path, tmp_path: Path) -> None:
    few, more = (
        prepare_data(
            settle_scenes(config, scenes, tmp_path, ImageSet(split="train_extra", labels="coarse", num_images=count))
        ).train.names
        for count in (2, 4)
    )
    assert len(few) == 2 and len(more) == 4 and set(few) < set(more)
    with pytest.raises(DataError, match="split train_extra must have 7 images, but has 6"):
        prepare_data(
            settle_scenes(config, scenes, tmp_path, ImageSet(split="train_extra", labels="coarse", num_images=7))
        )


def test_prepare_data_refuses_coarse_labels_that_were_not_planned_with(
    config: RunConfig, scenes: Path, tmp_path: Path
) -> None:
    run = settle_scenes(config, scenes, tmp_path, ImageSet(split="train_extra", labels="coarse"))
    found = survey_coarse(scenes, "train_extra", tmp_path).fingerprint
    assert prepare_data(run.model_copy(update={"train_fingerprint": found})).train_fingerprint == found
    with pytest.raises(DataError, match=r"coarse labels at .* must be those that the training was planned with"):
        prepare_data(run.model_copy(update={"train_fingerprint": "0" * 16}))


def test_prepare_data_refuses_when_coarse_labels_are_missing(config: RunConfig, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit/train_extra must hold"):
        prepare_data(settle_scenes(config, tree, tmp_path, ImageSet(split="train_extra", labels="coarse")))
    with pytest.raises(DataError, match=r"every image of train needs its label.*gtCoarse"):
        prepare_data(settle_scenes(config, tree, tmp_path, ImageSet(labels="coarse")))


def test_prepare_data_reads_both_sides_of_a_fold_from_one_cache(config: RunConfig, tmp_path: Path) -> None:
    spans = (Span(city="aachen", first="aachen_000001_000019", last="aachen_000002_000019"), Span(city="bonn"))
    sets = {"train_set": ImageSet(part="rest", spans=spans), "validation_set": ImageSet(part="fold", spans=spans)}
    data = prepare_data(config.model_copy(update={**sets, "cache": str(tmp_path)}))
    assert [name[:13] for name in data.validation.names] == [
        "aachen_000001",
        "aachen_000002",
        "bonn_000000_0",
        "bonn_000001_0",
    ]
    assert [name[:13] for name in data.train.names] == [f"aachen_00000{number}" for number in (0, 3, 4, 5)]
    assert tuple(fact.name for fact in data.validation_facts) == data.validation.names
    assert data.train.path == data.validation.path and len(list(tmp_path.glob("*/images.npy"))) == 1
