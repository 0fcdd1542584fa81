"""The story of `cityopt transfer`, with two small networks for COCO's classes that know coloured rectangles."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_root import SIZE, write_coco
from conftest import write_frame
from mlflow import MlflowClient

from cityopt.config import RunConfig
from cityopt.data.cityscapes import index_split, read_image, read_instance_ids
from cityopt.data.coco import encode_annotations, index_coco
from cityopt.data.pictures import read_picture
from cityopt.data.targets import find_instances
from cityopt.errors import ConfigError, DataError, StoreError, WeightsError
from cityopt.evaluation import transfer as judging
from cityopt.evaluation.boundary import BoundaryEvaluator
from cityopt.evaluation.cityscapes_ap import CityscapesEvaluator
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.labels import COCO_NAMES, THING_NAMES
from cityopt.models.build import build_model
from cityopt.models.masks import Prediction
from cityopt.settings import replace_section
from cityopt.training import transfer as story
from cityopt.training import transfer_comparison
from cityopt.training.checkpoint import load_model, save_converted
from cityopt.training.transfer import run_transfer

SEEN = (64, 128)
FAMILIES = ("mask_rcnn", "point_rend")


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> tuple[Path, Path]:
    """A COCO root and a Cityscapes tree with the same cars and persons."""
    folder = tmp_path_factory.mktemp("roots")
    write_coco(folder / "coco")
    for number in range(3):
        write_frame(folder / "streets", "val", "lund", number, empty=number == 2)
    return folder / "coco", folder / "streets"


@pytest.fixture(scope="module")
def checkpoints(roots, config, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("weights")
    samples = [to_sample(image) for image in index_coco(roots[0])[:2]]
    samples += [to_street_sample(frame) for frame in index_split(roots[1], "val")[:2]]
    return [train(samples, config, family, folder / f"{family}_coco.pt") for family in FAMILIES]


def train(samples, config: RunConfig, family: str, path: Path) -> Path:
    """Let a network for COCO's 80 classes learn images by heart."""
    settings = {"family": family, "classes": "coco", "coarse_head_channels": 32, "subdivision_points": 196}
    settings |= {"train_points": 32, "roi_samples": 16, "rpn_post_nms": 30, "rpn_pre_nms": 50}
    config = config.model_copy(update={"model": replace_section(config.model, **settings), "kind": "conversion"})
    torch.manual_seed(0)
    model = build_model(config.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    images, targets = zip(*samples, strict=True)
    for _ in range(50):
        optimizer.zero_grad()
        sum(model.loss(images, targets).values()).backward()
        optimizer.step()
    origin = {"framework": "elsewhere", "file": "x.pkl", "licence": "CC <BY>"}
    save_converted(path, model=model.state_dict(), config=config, origin=origin)
    return path


def to_sample(image):
    from hotcoco import mask

    entries = [entry for entry in encode_annotations(image) if not entry["iscrowd"]]
    instance_map = np.zeros(image.size, np.int32)
    for number, entry in enumerate(entries, start=1):
        instance_map[mask.decode(entry["segmentation"]) > 0] = number
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
    target = {
        "boxes_xyxy": torch.tensor(boxes),
        "classes": torch.tensor([entry["category_id"] for entry in entries]),
        "instance_map": torch.from_numpy(instance_map),
    }
    return to_tensor(read_picture(image.path)), target


def to_street_sample(frame):
    """Persons and cars, of which the street has no others, have the same numbers in both datasets."""
    found = find_instances(read_instance_ids(frame.instance_ids))
    target = {name: torch.from_numpy(getattr(found, name)) for name in ("boxes_xyxy", "classes", "instance_map")}
    assert set(target["classes"].tolist()) == {1, 3} == {COCO_NAMES.index(name) + 1 for name in ("person", "car")}
    return to_tensor(read_image(frame.image)), target


def to_tensor(pixels) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


@pytest.fixture
def transfer(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "SHORT_PX", SIZE[0])
    monkeypatch.setattr(judging, "LONG_PX", SIZE[1])
    monkeypatch.setattr(transfer_comparison, "AP_DRAWS", 20)
    monkeypatch.setitem(story.NUM_IMAGES, "val2017", 3)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def transfer(*models: Path, **options):
        chosen = [str(model) for model in models or checkpoints]
        return run_transfer(chosen, **{"store": tmp_path / "store", "device": "cpu", "size": SEEN, **options})

    return transfer


def score_by_hand(checkpoint: Path, coco: Path, streets: Path) -> dict[str, float]:
    """Predict image by image, rename classes by their names, and ask the protocols."""
    model = load_model(checkpoint)[0]
    own, official, boundary = CocoEvaluator(COCO_NAMES), CityscapesEvaluator(), BoundaryEvaluator()
    for image in index_coco(coco):
        prediction = model.predict([to_tensor(read_picture(image.path))])[0]
        own.add_annotated(image.name, image.size, encode_annotations(image), prediction)
    for frame in index_split(streets, "val"):
        found = model.predict([to_tensor(read_image(frame.image))])[0]
        names = [COCO_NAMES[index - 1] for index in found.classes]
        rows = [row for row, name in enumerate(names) if name in THING_NAMES]
        classes = np.array([THING_NAMES.index(names[row]) + 1 for row in rows], np.int64)
        masks = [found.masks[row] for row in rows]
        renamed = Prediction(found.boxes_xyxy[rows], found.scores[rows], classes, masks, found.size)
        for judge in (official, boundary):
            judge.add(frame.name, read_instance_ids(frame.instance_ids), renamed)
    streets_scores = {f"val/{name}": value for name, value in (official.summarize() | boundary.summarize()).items()}
    return streets_scores | {f"coco_val2017/{name}": value for name, value in own.summarize().items()}


@pytest.mark.slow
def test_study_gives_the_numbers_that_the_protocols_give_by_hand(transfer, checkpoints, roots, tmp_path, call):
    coco, streets = roots
    study = transfer(coco=coco, data=str(streets))
    assert [ground.prefix for ground in study.grounds] == ["val", "coco_val2017"]
    for subject, checkpoint in zip(study.subjects, checkpoints, strict=True):
        metrics = study.list_metrics(subject)
        for name, value in score_by_hand(checkpoint, coco, streets).items():
            assert metrics[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
        assert metrics["coco_val2017/coco/segm/ap50"] > 0.3 and metrics["val/coco/segm/ap50"] > 0.3
        own = [metrics[f"val/cityscapes/ap/class/{name}"] for name in ("person", "car")]
        assert metrics["val/cityscapes/ap_without_rider"] == pytest.approx(np.mean(own))
        assert metrics["val/shared/coco/segm/ap"] == pytest.approx(metrics["val/coco/segm/ap"])
        shared = [metrics[f"coco_val2017/coco/segm/ap/class/{name}"] for name in ("person", "car")]
        assert metrics["coco_val2017/shared/coco/segm/ap"] == pytest.approx(np.mean(shared))
        assert metrics["val/system/seconds_per_image"] > 0
    measures = [(comparison.ground, comparison.measure) for comparison in study.comparisons]
    assert ("cityscapes", "boundary_iou") in measures and ("coco", "mask_iou") in measures
    (ap,) = (x.found for x in study.comparisons if x.measure == "cityscapes_ap")
    first, second = (study.list_metrics(subject)["val/cityscapes/ap"] for subject in study.subjects)
    assert ap.difference == pytest.approx(second - first)
    json.dumps(study.to_json(), allow_nan=False)

    options = ("--coco", coco, "--data", streets, "--size", "64x128", "--limit", 2, "--device", "cpu")
    places = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    models = [word for checkpoint in checkpoints for word in ("--weights", checkpoint)]
    code, out, err = call("transfer", *models, *options, *places)
    assert (code, err) == (0, "") and "Cityscapes AP, 7 without rider" in out and "val, the first 2 of 3 images" in out
    page = (tmp_path / "out/report.html").read_text()
    assert (
        "no number here is official" in page
        and "CC &lt;BY&gt;" in page
        and "http" not in page.replace("http-equiv", "")
    )
    written = json.loads((tmp_path / "out/transfer.json").read_text())
    assert [model["label"] for model in written["models"]] == [f"{family}_coco" for family in FAMILIES]
    client = MlflowClient(f"sqlite:///{tmp_path / 'store/mlflow.db'}")
    experiment = client.get_experiment_by_name("transfer")
    runs = client.search_runs([experiment.experiment_id], "tags.`cityopt.kind` = 'transfer'")
    assert sorted(run.info.run_name for run in runs) == ["mask_rcnn_coco", "point_rend_coco"]
    for run in runs:
        assert run.info.status == "FINISHED" and run.data.params["origin.licence"] == "CC <BY>"
        assert "val_first_2/cityscapes/ap50" in run.data.metrics
        assert (run.data.params["size"], run.data.params["device"], run.data.params["limit"]) == ("64x128", "cpu", "2")
        assert (
            torch.__version__.startswith(run.data.params["environment.torch"]) and run.data.params["environment.device"]
        )
    code, out, _ = call("transfer", *models[:2], "--data", streets, *options[4:6], *places, "--json")
    assert code == 0 and json.loads(out)["comparisons"] == []


def test_coco_alone_and_streets_alone_are_enough(transfer, checkpoints, roots):
    alone = transfer(checkpoints[0], coco=roots[0], limit=1)
    assert [ground.key for ground in alone.grounds] == ["coco"]
    assert all(name.startswith("coco_val2017_first_1/") for name in alone.list_metrics(alone.subjects[0]))
    told: list[tuple[str, int, int]] = []
    streets = transfer(checkpoints[0], data=str(roots[1]), limit=1, on_progress=lambda *words: told.append(words))
    assert [ground.prefix for ground in streets.grounds] == ["val_first_1"]
    assert told == [("mask_rcnn_coco on Cityscapes", done, 1) for done in (0, 1)]  # the clock runs from 0


def test_root_with_a_part_of_val2017_gives_no_official_names(transfer, checkpoints, roots, monkeypatch):
    monkeypatch.setitem(story.NUM_IMAGES, "val2017", 5000)
    study = transfer(checkpoints[0], coco=roots[0])
    assert all(name.startswith("coco_val2017_other_3/") for name in study.list_metrics(study.subjects[0]))


def test_scenes_that_were_made_keep_their_name(transfer, checkpoints, roots, monkeypatch):
    monkeypatch.setattr(story, "make_scenes", lambda *_: roots[1])
    (ground,) = transfer(checkpoints[0], data="synthetic", limit=1).grounds
    assert (ground.given, ground.root) == ("synthetic", roots[1])


def test_study_is_refused_without_any_root(transfer, checkpoints):
    with pytest.raises(DataError, match=r"no dataset.*--data synthetic.*--coco COCO_ROOT"):
        transfer(checkpoints[0])


def test_coco_root_without_annotations_is_refused_before_any_work(transfer, checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold annotations"):
        transfer(checkpoints[0], coco=tmp_path / "empty")


def test_network_of_eight_classes_is_judged_on_streets_alone(transfer, roots, config, checkpoints, tmp_path):
    model = build_model(config.model)
    path = tmp_path / "eight.pt"
    save_converted(path, model=model.state_dict(), config=config, origin={})
    with pytest.raises(WeightsError, match=r"eight\.pt must know COCO's 80 classes"):
        transfer(path, coco=roots[0])
    study = transfer(checkpoints[0], path, coco=roots[0], data=str(roots[1]), limit=1)
    assert [set(subject.judged) for subject in study.subjects] == [{"cityscapes", "coco"}, {"cityscapes"}]
    assert {comparison.ground for comparison in study.comparisons} == {"cityscapes"}
    assert not any("riders_guessed" in name for name in study.list_metrics(study.subjects[1]))


def test_what_is_no_network_of_instances_is_refused_by_name(transfer, config, roots, tmp_path):
    semantic = replace_section(config.model, family="semantic_fpn", anchors="default", anchor_table=None)
    model = build_model(semantic)
    changed = config.model_copy(update={"model": semantic})
    save_converted(tmp_path / "fpn.pt", model=model.state_dict(), config=changed, origin={})
    with pytest.raises(WeightsError, match=r"must find instances.*'semantic_fpn'"):
        transfer(tmp_path / "fpn.pt", data=str(roots[1]))
    (tmp_path / "model_final.pkl").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="cityopt weights convert"):
        transfer(tmp_path / "model_final.pkl", data=str(roots[1]))
    with pytest.raises(StoreError, match=r"'nowhere\.pt'"):
        transfer(Path("nowhere.pt"), data=str(roots[1]))


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}])
def test_limit_must_leave_something(transfer, checkpoints, options):
    with pytest.raises(ConfigError, match="at least 1"):
        transfer(checkpoints[0], **options)
