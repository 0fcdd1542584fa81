"""`cityopt predict`: what it writes is what the model found, and nothing of the user's is lost or in the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools

from cityopt.config import RunConfig
from cityopt.data.cityscapes import read_size
from cityopt.data.pictures import read_picture
from cityopt.data.resizing import resize_image
from cityopt.errors import ConfigError, DataError, StoppedError, StoreError, TrainingError
from cityopt.labels import THING_LABELS
from cityopt.models.build import build_model
from cityopt.training import prediction
from cityopt.training.checkpoint import TrainingState, load_model, save_checkpoint
from cityopt.training.optim import build_optimizer
from cityopt.training.prediction import run_prediction


@pytest.fixture(scope="module")
def checkpoint(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, whose scores are about 1 / 9."""
    torch.manual_seed(0)
    model = build_model(config.model)
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    optimizer = build_optimizer(model, config.training)
    save_checkpoint(path, model=model, optimizer=optimizer, state=TrainingState(), config=config, environment={})
    return path


@pytest.fixture
def predict(checkpoint: Path, tmp_path: Path):
    """Predict some inputs into a folder."""

    def predict(*inputs: Path, out: Path | None = None, score: float = 0.1, **options):
        return run_prediction(
            str(checkpoint),
            inputs,
            out=out or tmp_path / "out",
            store=tmp_path / "store",
            score=score,
            device="cpu",
            **options,
        )

    return predict


def write_picture(path: Path, size: tuple[int, int] = (64, 128)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def test_json_holds_what_the_model_finds_at_the_pictures_own_size(predict, checkpoint, tmp_path) -> None:
    picture = write_picture(tmp_path / "in" / "a.png", (100, 150))
    summary = predict(picture)
    document = json.loads((tmp_path / "out" / "detections" / "a.json").read_text())
    model, _ = load_model(checkpoint)
    seen = resize_image(read_picture(picture), (64, 96))  # fits into 64 x 128
    (expected,) = model.predict([torch.from_numpy(seen.copy()).permute(2, 0, 1).float() / 255], [(100, 150)])
    rows = np.flatnonzero(expected.scores >= np.float32(0.1))
    assert len(rows) == len(document["detections"]) == summary.num_detections > 0
    for row, found in zip(rows, document["detections"], strict=True):
        label = THING_LABELS[expected.classes[row] - 1]
        assert (found["class"], found["class_id"]) == (label.name, label.id)
        assert found["score"] == pytest.approx(expected.scores[row], abs=1e-5)
        np.testing.assert_allclose(found["box_xyxy"], expected.boxes_xyxy[row], atol=1e-2)
        assert found["mask"]["size"] == [100, 150] and isinstance(found["mask"]["counts"], str)
        overlap = rle_tools.iou([found["mask"]], [expected.masks[row]], [0])
        assert rle_tools.area(expected.masks[row]) == 0 or overlap[0][0] > 0.99
    assert document["image"] == {"path": str(picture), "height": 100, "width": 150}
    assert document["model"]["checkpoint"] == str(checkpoint) and document["model"]["input_size"] == [64, 128]
    assert document["score_threshold"] == 0.1 and "ground_truth" not in document
    assert read_size(tmp_path / "out" / "overlays" / "a.jpg") == (538, 768)


def test_ground_truth_is_drawn_and_counted_when_the_tree_has_labels(predict, tree, tmp_path) -> None:
    summary = predict(tree / "leftImg8bit" / "val")
    assert (summary.num_pictures, summary.num_labelled) == (2, 2)
    assert summary.num_found + summary.num_missed == 4  # a car and a person in each
    for path in sorted((tmp_path / "out" / "detections").rglob("*.json")):
        document = json.loads(path.read_text())
        truth = document["ground_truth"]
        assert truth["path"].endswith("_gtFine_instanceIds.png") and truth["found"] + truth["missed"] == 2
        assert read_size(tmp_path / "out" / "overlays" / "lund" / f"{path.stem}.jpg")[1] > 2 * 768


def test_batches_change_nothing_when_sizes_are_mixed(predict, tmp_path) -> None:
    for number, size in enumerate([(64, 128), (64, 128), (90, 70), (64, 128), (30, 300)]):
        write_picture(tmp_path / "in" / f"{number}.png", size)
    counts: list[tuple[int, int]] = []
    predict(tmp_path / "in", batch_size=3, on_count=lambda *count: counts.append(count))
    predict(tmp_path / "in", batch_size=1, out=tmp_path / "single")
    assert counts == [(2, 5), (3, 5), (4, 5), (5, 5)]
    for path in (tmp_path / "out" / "detections").iterdir():
        a, b = (json.loads((tmp_path / out / "detections" / path.name).read_text()) for out in ("out", "single"))
        assert [d["class"] for d in a["detections"]] == [d["class"] for d in b["detections"]]
        for one, other in zip(a["detections"], b["detections"], strict=True):
            np.testing.assert_allclose(one["box_xyxy"], other["box_xyxy"], atol=1e-2)


def test_unreadable_files_are_told_at_the_end_and_stop_nothing(predict, tree, tmp_path) -> None:
    write_picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_text("no picture")
    (tmp_path / "in" / "zero.jpg").touch()
    shutil.copytree(tree, tmp_path / "tree")
    label = next((tmp_path / "tree" / "gtFine" / "val").rglob("*_instanceIds.png"))
    label.write_bytes(label.read_bytes()[:60])
    counts: list[tuple[int, int]] = []
    nowhere, val = tmp_path / "nowhere.png", tmp_path / "tree" / "leftImg8bit" / "val"
    summary = predict(tmp_path / "in", nowhere, val, on_count=lambda *count: counts.append(count))
    bad = {str(path) for path in (tmp_path / "in" / "bad.png", tmp_path / "in" / "zero.jpg", nowhere, label)}
    assert set(summary.problems) == bad and "drawn without it" in summary.problems[str(label)]
    assert (summary.num_pictures, summary.num_labelled, counts[-1]) == (3, 1, (5, 5))
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["problems"] == summary.problems and written["is_complete"]
    assert sorted(written["files"]) == sorted(
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.name != "summary.json"
    )


def test_nothing_readable_is_an_error_that_names_the_files(predict, tmp_path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(DataError, match=r"no picture could be read: .*bad.png cannot be read"):
        predict(tmp_path / "bad.png")
    with pytest.raises(DataError, match=r"nowhere is not there"):
        predict(tmp_path / "nowhere", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_foreign_files_stay_when_they_lie_where_predict_would_write(predict, tmp_path) -> None:
    picture = write_picture(tmp_path / "in" / "a.png")
    with pytest.raises(ConfigError, match=r"holds 'a.png'.*Choose another folder"):
        predict(picture, out=tmp_path / "in")
    with pytest.raises(ConfigError, match="is a file"):
        predict(picture, out=picture)
    predict(picture)
    predict(picture)  # its own files are replaced
    other = write_picture(tmp_path / "in" / "b.png")
    foreign = tmp_path / "out" / "overlays" / "b.jpg"
    foreign.write_text("mine")
    with pytest.raises(ConfigError, match=r"b.jpg is not one of them"):
        predict(other)
    assert foreign.read_text() == "mine"


def test_own_files_are_replaced_when_an_earlier_call_was_cut_off(predict, tmp_path, monkeypatch) -> None:
    for name in "abc":
        write_picture(tmp_path / "in" / f"{name}.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(StoppedError, match="1 of 3 pictures"):
        predict(tmp_path / "in", batch_size=1, on_count=interrupt)
    assert not json.loads((tmp_path / "out" / "summary.json").read_text())["is_complete"]
    assert predict(tmp_path / "in").num_pictures == 3


@pytest.mark.parametrize("options", [{"score": 1.5}, {"score": float("nan")}, {"batch_size": 0}])
def test_impossible_options_are_refused_before_anything_is_written(predict, tmp_path, options) -> None:
    with pytest.raises(ConfigError, match="must"):
        predict(write_picture(tmp_path / "a.png"), **options)
    assert not (tmp_path / "out").exists()


def test_memory_holds_few_pictures_however_many_there_are(predict, tmp_path, monkeypatch) -> None:
    for number in range(6):
        write_picture(tmp_path / "in" / f"{number}.png", (64, 128))
    batches: list[int] = []
    look = prediction.Predictor._look
    monkeypatch.setattr(
        prediction.Predictor, "_look", lambda self, batch: batches.append(len(batch)) or look(self, batch)
    )
    monkeypatch.setattr(prediction, "MAX_BATCH_PIXELS", 2 * 64 * 128)
    predict(tmp_path / "in", batch_size=8)
    assert batches == [2, 2, 2]


def test_command_predicts_a_tree_and_says_what_came_of_it(checkpoint, tree, tmp_path, call) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    end = ("--out", tmp_path / "out", "--device", "cpu", "--score", "0.1", "--store", tmp_path / "store")
    code, out, err = call("predict", tree, tmp_path / "bad.png", "--model", checkpoint, *end)
    assert (code, err) == (0, "") and "10 pictures, " in out and "10 pictures with ground truth" in out
    assert "1 file could not be read:" in out and f"{tmp_path / 'bad.png'}: cannot be read" in out
    assert len(list((tmp_path / "out" / "overlays").rglob("*.jpg"))) == 10
    assert not (tmp_path / "store").exists()
    code, out, err = call("predict", tmp_path / "bad.png", "--model", checkpoint, *end)
    assert code == 1 and err.startswith("Error: no picture could be read")
    code, out, err = call("predict", tree, "--model", "nothing.pt", *end)
    assert code == 1 and "a model must be a checkpoint file that exists" in err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_memory_that_runs_out_is_told_with_what_to_do(predict, tmp_path, monkeypatch, error) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(prediction, "resize_image", fail)
    with pytest.raises(TrainingError, match=r"memory ran out\. Lower --batch-size") as told:
        predict(write_picture(tmp_path / "in" / "a.png"))
    assert told.value.reason == "oom"


def test_out_is_refused_when_it_cannot_be_looked_into(predict, tmp_path, monkeypatch) -> None:
    picture, whole = write_picture(tmp_path / "in" / "a.png"), Path.iterdir

    def forbid(path):
        if path == tmp_path / "out":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "iterdir", forbid)
    with pytest.raises(StoreError, match=r"`--out` must be a writable folder.*Permission denied"):
        predict(picture)
