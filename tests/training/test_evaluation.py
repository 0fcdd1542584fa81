"""The story of `cityopt evaluate`, on scenes twice the size that the model sees, against the official scripts."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_frame
from official_scripts import score_export
from PIL import Image

from cityopt.config import RunConfig
from cityopt.data.cityscapes import index_split
from cityopt.data.resizing import resize_raster
from cityopt.data.targets import find_instances
from cityopt.errors import ConfigError, DataError, StoreError, TrainingError, WeightsError
from cityopt.evaluation.full_resolution import decode_frames
from cityopt.image_set import ImageSet
from cityopt.models.build import build_model
from cityopt.settings import replace_section
from cityopt.tracking.partial_folder import PartialFolder
from cityopt.training import evaluation
from cityopt.training.checkpoint import TrainingState, load_model, save_checkpoint
from cityopt.training.evaluation import run_evaluation
from cityopt.training.scoring import score_checkpoint

SEEN = (32, 64)
NAMES = [f"lund_{number:06d}_000019" for number in range(4)]


@pytest.fixture(scope="session")
def large_tree(tmp_path_factory) -> Path:
    """Four images of 64 x 128 in val, the last without instances, and two in test with dummy labels."""
    root = tmp_path_factory.mktemp("large")
    for number in range(3):
        write_frame(root, "val", "lund", number)
    write_frame(root, "val", "lund", 3, empty=True)
    for number in range(2):
        write_frame(root, "test", "berlin", number, empty=True)
    return root


@pytest.fixture(scope="session")
def checkpoint(large_tree, config, tmp_path_factory) -> Path:
    """A model that has seen the images of val at half their size until it finds most of them."""
    config = config.model_copy(update={"data": replace_section(config.data, root=str(large_tree), size=SEEN)})
    torch.manual_seed(0)
    model = build_model(config.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    samples = [to_sample(item) for item in decode_frames(index_split(large_tree, "val")[:3], SEEN)]
    images, targets = zip(*samples, strict=True)
    for _ in range(70):
        optimizer.zero_grad()
        sum(model.loss(images, targets).values()).backward()
        optimizer.step()
    return save(tmp_path_factory.mktemp("model") / "best.pt", config, model)


def to_sample(decoded):
    found = find_instances(resize_raster(decoded.raster, SEEN))
    target = {name: torch.from_numpy(getattr(found, name)) for name in ("boxes_xyxy", "classes", "instance_map")}
    return torch.from_numpy(decoded.image.transpose(2, 0, 1).copy()).float() / 255, target


def save(path: Path, config: RunConfig, model, **changes) -> Path:
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(path, model=model, optimizer=optimizer, state=TrainingState(), config=config, environment={})
    if changes:
        torch.save(torch.load(path, weights_only=True) | changes, path)
    return path


@pytest.fixture
def evaluate(checkpoint, tmp_path):
    def evaluate(model=checkpoint, **options):
        return run_evaluation(str(model), store=tmp_path / "store", device="cpu", **options)

    return evaluate


def test_exported_files_give_the_official_scripts_the_numbers_that_are_returned(evaluate, large_tree, tmp_path):
    seen = []
    found = evaluate(export=tmp_path / "out", on_progress=lambda *counts: seen.append(counts))
    expected = score_export(tmp_path / "out", large_tree, "val")
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
    for name in ("cityscapes/ap", "coco/segm/ap", "coco/bbox/ap", "semantic_things/miou"):
        assert 0 < found.metrics[f"val/{name}"] < 1, name
    assert found.metrics["val/cityscapes/ap"] != found.metrics["val/coco/segm/ap"]
    texts = sorted((tmp_path / "out/instances").glob("*.txt"))
    assert [path.name for path in texts] == [f"{name}_pred.txt" for name in NAMES]
    assert (found.num_images, found.is_part, found.sizes, found.size_seen) == (4, False, ((64, 128),), SEEN)
    assert seen == [("predicting", done, 4) for done in range(5)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_numbers_are_those_of_the_cached_images_when_the_model_sees_full_size(checkpoint, large_tree, tmp_path):
    """Promotion scores images from the cache; at the images' own size both ways are one."""
    for decoded in decode_frames(index_split(large_tree, "val"), SEEN):
        for split, city in (("train", "ulm"), ("val", "lund")):
            image = tmp_path / f"tree/leftImg8bit/{split}/{city}/{decoded.frame.image.name.replace('lund', city)}"
            label = tmp_path / f"tree/gtFine/{split}/{city}/{decoded.frame.instance_ids.name.replace('lund', city)}"
            for path, pixels in ((image, decoded.image), (label, resize_raster(decoded.raster, SEEN))):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    own = load_model(checkpoint)[1]
    data = replace_section(own.data, root=str(tmp_path / "tree"))
    cached = own.model_copy(update={"data": data, "cache": str(tmp_path / "cache")})
    expected = score_checkpoint(checkpoint, cached, ImageSet(split="val"), prefix="val")
    options = {"store": tmp_path, "data": str(tmp_path / "tree"), "protocols": "coco", "device": "cpu"}
    np.testing.assert_equal(run_evaluation(str(checkpoint), **options).metrics, expected)
    assert 0 < expected["val/coco/segm/ap"] < 1


def test_metrics_are_those_of_the_protocols_that_are_asked_for(evaluate):
    every = evaluate().to_json()
    assert json.loads(json.dumps(every, allow_nan=False)) == every
    assert every["val/cityscapes/ap/class/train"] is None
    assert {name.split("/")[1] for name in every} == {"cityscapes", "coco", "semantic_things"}
    some = evaluate(protocols="semantic, cityscapes").to_json()
    assert some == {name: value for name, value in every.items() if "/coco/" not in name}
    boundary = evaluate(protocols="boundary").to_json()
    assert {name.rpartition("/")[0] for name in boundary} >= {"val/boundary/segm", "val/boundary/segm/ap/class"}
    assert 0 < boundary["val/boundary/segm/ap"] <= every["val/coco/segm/ap"]  # of both overlaps the lesser counts


def test_limit_takes_the_first_images_under_names_that_are_not_those_of_the_split(evaluate, large_tree, tmp_path):
    part = evaluate(limit=2, protocols="cityscapes", export=tmp_path / "out")
    assert (part.is_part, part.num_images, part.num_in_split) == (True, 2, 4)
    assert all(name.startswith("val_first_2/cityscapes/") for name in part.metrics)
    assert len(list((tmp_path / "out/pixels").iterdir())) == 2
    whole = evaluate(limit=4, protocols="cityscapes")
    assert not whole.is_part and whole.metrics.keys() == evaluate(protocols="cityscapes").metrics.keys()


def test_test_split_is_exported_without_scores_and_without_ground_truth(evaluate, tmp_path):
    found = evaluate(split="test", export=tmp_path / "out")
    assert (found.metrics, found.protocols, found.num_images) == ({}, (), 2)
    truth = json.loads((tmp_path / "out/coco/ground_truth.json").read_text())
    assert truth["annotations"] == [] and [image["id"] for image in truth["images"]] == [1, 2]
    assert len(list((tmp_path / "out/instances").glob("berlin_*_pred.txt"))) == 2


@pytest.mark.parametrize("options", [{}, {"protocols": "coco"}, {"protocols": "coco", "export": "out"}])
def test_test_split_is_refused_when_scores_are_wanted(evaluate, tmp_path, options):
    if "export" in options:
        options = options | {"export": tmp_path / "out"}
    with pytest.raises(DataError, match=r"dummies.*--export DIR"):
        evaluate(split="test", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"split": "vall"}, DataError, "train, val, test.*'vall'"),
        ({"protocols": "cityscape"}, ConfigError, "Did you mean 'cityscapes'"),
        ({"protocols": ""}, ConfigError, "cityscapes, coco, semantic"),
        ({"limit": 0}, ConfigError, "at least 1, but got 0"),
        ({"limit": -3}, ConfigError, "at least 1, but got -3"),
        ({"data": "/nowhere"}, DataError, "/nowhere"),
        ({"model": "models:/cityopt-none@champion"}, StoreError, "no models yet"),
        ({"model": "nowhere.pt"}, StoreError, "'nowhere.pt'"),
    ],
)
def test_bad_options_are_refused_with_what_would_do(evaluate, options, error, text):
    with pytest.raises(error, match=text):
        evaluate(**options)


def test_halves_of_val_are_judged_apart_when_the_study_keeps_one_as_a_test(checkpoint, large_tree, tmp_path):
    """Each half is what `--limit` shows of it or leaves out; both together have the instances of all."""
    _, config = load_model(checkpoint)
    config = config.model_copy(update={"data": replace_section(config.data, val_halves="count")})
    path = save(tmp_path / "halved.pt", config, load_model(checkpoint)[0])
    found = {split: run_evaluation(str(path), store=tmp_path / "store", split=split) for split in ("val", "test")}
    assert [(it.split, it.num_images, it.num_in_split) for it in found.values()] == [
        ("val_half", 2, 2),
        ("test_half", 2, 2),
    ]
    whole = run_evaluation(str(checkpoint), store=tmp_path / "store", limit=2)
    first = {name.removeprefix("val_half/"): value for name, value in found["val"].metrics.items()}
    assert first == pytest.approx({k.removeprefix("val_first_2/"): v for k, v in whole.metrics.items()}, nan_ok=True)
    assert all(name.startswith("test_half/") for name in found["test"].metrics)
    run_evaluation(str(path), store=tmp_path / "store", split="test", export=tmp_path / "export")
    exported = {Path(line).name for line in map(str, (tmp_path / "export").rglob("*.txt"))}
    assert any(NAMES[2] in name for name in exported) and not any(NAMES[0] in name for name in exported)


@pytest.fixture
def own_tree(large_tree, tmp_path) -> Path:
    return Path(shutil.copytree(large_tree, tmp_path / "tree"))


def image_of(root: Path, name: str) -> Path:
    return root / "leftImg8bit/val/lund" / f"{name}_leftImg8bit.png"


def test_split_is_refused_when_an_image_is_missing_or_broken(evaluate, own_tree, tmp_path):
    image = image_of(own_tree, NAMES[1])
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=image.name):
        evaluate(data=str(own_tree), export=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
    image.unlink()
    with pytest.raises(DataError, match="every label of val needs its image, but 1 of 4"):
        evaluate(data=str(own_tree))


def test_split_is_refused_when_labels_are_missing(evaluate, own_tree):
    next((own_tree / "gtFine/val").rglob(f"{NAMES[2]}*_instanceIds.png")).unlink()
    with pytest.raises(DataError, match="every image of val needs its label"):
        evaluate(data=str(own_tree))


@pytest.mark.parametrize("layer", ["roi_heads.box_predictor.cls_score.weight", "rpn.head.cls_logits.weight"])
def test_model_is_refused_when_its_classes_or_anchors_do_not_fit(evaluate, checkpoint, tmp_path, layer):
    content = torch.load(checkpoint, weights_only=True)
    content["model"][layer] = content["model"][layer][:-1]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=layer.rpartition(".")[0]):
        evaluate(model=tmp_path / "other.pt")


def test_export_is_refused_before_any_work_when_its_folder_holds_files(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_model", lambda _: pytest.fail("the model was loaded"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(StoreError, match="new or empty"):
        evaluate(export=tmp_path / "out")
    with pytest.raises(StoreError, match="new or empty"):
        evaluate(export=tmp_path / "out/notes.txt")


def test_scenes_are_made_when_the_data_is_synthetic(evaluate, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["data"]["synthetic"] = {"num_images": 4, "size": (64, 128), "seed": 0}
    torch.save(content, tmp_path / "own.pt")
    found = evaluate(model=tmp_path / "own.pt", data="synthetic", protocols="coco")
    assert found.num_images > 0 and found.root.is_relative_to(tmp_path / "store")


def test_numbers_outlive_an_export_that_cannot_be_ended(evaluate, checkpoint, call, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(PartialFolder, "finish", fail)
    found = evaluate(export=tmp_path / "out", protocols="semantic")
    assert isinstance(found.problem, StoreError) and "resource busy" in str(found.problem)
    np.testing.assert_equal(found.metrics, evaluate(protocols="semantic").metrics)
    options = ("--export", tmp_path / "out", "--protocol", "semantic", "--json", "--store", tmp_path, "--device", "cpu")
    code, out, error = call("evaluate", "--model", checkpoint, *options)
    assert (code, json.loads(out)) == (1, found.to_json()) and "resource busy" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_told_as_such_and_no_export_is_left(evaluate, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(evaluation, "judge_frames", fail)
    with pytest.raises(TrainingError, match="memory ran out") as told:
        evaluate(export=tmp_path / "out")
    assert told.value.reason == "oom" and not (tmp_path / "out").exists()
