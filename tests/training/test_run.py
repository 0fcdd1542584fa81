"""Runs of seconds on a tree of rectangles, with a real (tiny) Mask R-CNN."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from cityscapesscripts.helpers.labels import labels as official_labels
from conftest import write_frame
from PIL import Image

from cityopt.config import DEFAULT_ANCHORS, RunConfig
from cityopt.data.cache import ImageCache
from cityopt.data.loaders import Batch, build_loader
from cityopt.errors import ConfigError, DataError, TrainingError
from cityopt.settings import replace_section, replace_settings
from cityopt.tracking.run_folder import NullTracker, RunFolder, StaleAttemptError, begin_attempt, read_records
from cityopt.training import run as run_module
from cityopt.training.checkpoint import load_checkpoint, load_model
from cityopt.training.progress import Progress
from cityopt.training.run import TrainingResult, check_same_training, run_training

Answer = Literal["continue", "stop"]


class Coordinator:
    """Hears of epochs; stops or dies after a given one."""

    def __init__(self, *, stop_after: int | None = None, die_after: int | None = None) -> None:
        self.heard: list[tuple[int, dict[str, float]]] = []
        self.stop_after, self.die_after = stop_after, die_after

    def __call__(self, epoch: int, metrics: dict[str, float]) -> Answer:
        self.heard.append((epoch, metrics))
        if epoch == self.die_after:
            raise KeyboardInterrupt
        return "stop" if epoch == self.stop_after else "continue"


def scores(metrics: dict[str, float]) -> dict[str, float]:
    """Leave out what depends on the clock."""
    return {k: v for k, v in metrics.items() if not k.startswith("system/") and k != "train/images_per_s"}


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(
    config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainingResult, Coordinator]:
    folder, coordinator = tmp_path_factory.mktemp("undisturbed") / "run", Coordinator()
    return folder, run_training(config, RunFolder(folder), coordinator), coordinator


def test_run_training_learns_and_reports_each_epoch(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig
) -> None:
    folder, result, coordinator = undisturbed
    assert (result.outcome, result.epochs, result.checkpoint) == ("complete", 4, folder / "best.pt")
    assert [epoch for epoch, _ in coordinator.heard] == [1, 2, 3, 4]
    records = read_records(folder)[0]
    assert [(record.step, record.metrics) for record in records] == coordinator.heard
    assert all(math.isfinite(value) for record in records for value in record.metrics.values())
    losses = [record.metrics["train/loss/total"] for record in records]
    assert losses[-1] < losses[0]
    names = {"val/coco/segm/ap", "val/coco/bbox/ap50", "train/learning_rate", "system/rss_gib", "system/cpu_share"}
    assert names <= records[0].metrics.keys()


def test_run_training_keeps_the_best_epoch(undisturbed: tuple[Path, TrainingResult, Coordinator]) -> None:
    folder, result, coordinator = undisturbed
    values = [metrics["val/coco/segm/ap"] for _, metrics in coordinator.heard]
    assert result.best_value == max(values)
    assert result.best_epoch == values.index(max(values)) + 1
    assert result.metrics == coordinator.heard[result.best_epoch - 1][1]
    assert load_checkpoint(folder / "best.pt")["state"].epoch == result.best_epoch
    assert load_checkpoint(folder / "last.pt")["state"].epoch == 4


def test_run_training_writes_what_it_trained_with(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig
) -> None:
    folder, *_ = undisturbed
    artifacts = folder / "artifacts"
    assert RunConfig.model_validate(yaml.safe_load((artifacts / "config.yaml").read_text())) == config
    assert json.loads((artifacts / "anchors.json").read_text())["sizes"][0] == [12.0] * 3
    assert f"torch=={torch.__version__.split('+')[0]}" in (artifacts / "environment.txt").read_text()
    assert {path.name for path in (artifacts / "overlays").iterdir()} == {
        "bonn_000000_000019.jpg",
        "bonn_000001_000019.jpg",
    }
    params = RunFolder(folder).read_params()
    assert params["training.learning_rate"] == 0.008
    assert params["training.scaled_learning_rate"] == pytest.approx(0.002)
    assert (params["data.num_train_images"], params["data.num_validation_images"]) == (6, 2)
    assert params["environment.threads"] == "1"
    assert load_model(folder / "best.pt")[1] == config


def test_run_training_repeats_to_the_last_bit(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig, tmp_path: Path
) -> None:
    folder, _, coordinator = undisturbed
    again = Coordinator()
    run_training(config, RunFolder(tmp_path / "run"), again)
    assert [scores(m) for _, m in again.heard] == [scores(m) for _, m in coordinator.heard]
    assert same(weights(tmp_path / "run" / "last.pt"), weights(folder / "last.pt"))


def test_run_training_repeats_to_the_last_bit_when_two_threads_share_the_work(config: RunConfig) -> None:
    heard = []
    for _ in range(2):
        coordinator = Coordinator(stop_after=1)
        run_training(config.model_copy(update={"threads": 2}), NullTracker(), coordinator)
        assert torch.get_num_threads() == 2
        heard.append(scores(coordinator.heard[0][1]))
    torch.set_num_threads(1)
    assert heard[0] == heard[1]


def test_run_training_differs_when_the_seed_does(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig
) -> None:
    other = Coordinator(stop_after=1)
    run_training(config.model_copy(update={"seed": 4}), NullTracker(), other)
    assert scores(other.heard[0][1]) != scores(undisturbed[2].heard[0][1])


def test_run_training_equals_an_undisturbed_run_when_killed_and_resumed(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig, tmp_path: Path
) -> None:
    folder, result, coordinator = undisturbed
    tracker, begin = RunFolder(tmp_path / "run"), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tracker, Coordinator(die_after=2))
    torch.manual_seed(99)
    second = Coordinator()
    resumed = run_training(config, RunFolder(tmp_path / "run"), second)
    took_s = time.perf_counter() - begin
    assert [epoch for epoch, _ in second.heard] == [2, 3, 4]
    assert [scores(m) for _, m in second.heard] == [scores(m) for _, m in coordinator.heard[1:]]
    assert same(weights(tmp_path / "run" / "last.pt"), weights(folder / "last.pt"))
    assert same(weights(tmp_path / "run" / "best.pt"), weights(folder / "best.pt"))
    assert (resumed.best_epoch, resumed.best_value) == (result.best_epoch, result.best_value)
    assert [record.step for record in read_records(tmp_path / "run")[0]] == [1, 2, 3, 4]
    state = load_checkpoint(tmp_path / "run" / "last.pt")["state"]
    epochs_s = sum(record.metrics["system/epoch_s"] for record in state.history)
    # The finished epochs of both attempts, their checkpoints, and what lies around; all of that is in `took_s` too.
    assert epochs_s < state.seconds < resumed.seconds < took_s


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def kill_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool) -> None:
    """Die before or after the given call of a function."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise KilledError
        answer = original(*args, **kwargs)
        if calls == call:
            raise KilledError
        return answer

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("owner", "name", "after", "finished"),
    [
        (run_module, "evaluate_model", True, 1),
        (run_module, "save_checkpoint", False, 1),
        (run_module, "save_checkpoint", True, 2),
        (RunFolder, "log_metrics", False, 2),
        (RunFolder, "log_metrics", True, 2),
    ],
)
def test_run_training_makes_up_for_what_a_kill_cut_off(
    undisturbed: tuple[Path, TrainingResult, Coordinator],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
    finished: int,
) -> None:
    first = Coordinator()
    with monkeypatch.context() as patch:
        kill_in(patch, owner, name, 2, after=after)
        with pytest.raises(KilledError):
            run_training(config, RunFolder(tmp_path), first)
    assert [epoch for epoch, _ in first.heard] == [1]
    history = load_checkpoint(tmp_path / "last.pt")["state"].history
    assert len(history) == finished
    second = Coordinator(stop_after=3)
    result = run_training(config, RunFolder(tmp_path), second)
    assert [epoch for epoch, _ in second.heard] == [finished, *range(finished + 1, 4)]
    records = read_records(tmp_path)[0]
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.time_ms for record in records[:finished]] == [record.time_ms for record in history]
    assert [scores(r.metrics) for r in records] == [scores(m) for _, m in undisturbed[2].heard[:3]]
    assert load_checkpoint(tmp_path / "best.pt")["state"].epoch == result.best_epoch


def test_run_training_leaves_checkpoints_alone_when_another_attempt_has_taken_over(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other takes over while this one trains its second epoch; the first epoch's files stay as they are."""
    tracker, before = RunFolder(tmp_path, "old"), {}
    train_epoch = run_module.train_epoch

    def train(*args: Any, **kwargs: Any) -> dict[str, float]:
        if (tmp_path / "last.pt").exists():
            before.update({name: (tmp_path / name).read_bytes() for name in ("last.pt", "best.pt")})
            begin_attempt(tmp_path, "new")
        return train_epoch(*args, **kwargs)

    monkeypatch.setattr(run_module, "train_epoch", train)
    with pytest.raises(StaleAttemptError, match="another one has taken it over"):
        run_training(config, tracker, Coordinator())
    assert len(before) == 2
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert [record.step for record in read_records(tmp_path)[0]] == [1]
    assert not list(tmp_path.glob(".*partial"))


def test_run_training_returns_at_once_when_all_epochs_were_done(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig
) -> None:
    folder, result, _ = undisturbed
    before, again = (folder / "last.pt").stat().st_mtime_ns, Coordinator(stop_after=4)
    found = run_training(config, RunFolder(folder), again)
    assert found == replace(result, seconds=found.seconds)
    assert [epoch for epoch, _ in again.heard] == [4]
    assert (folder / "last.pt").stat().st_mtime_ns == before


def test_run_training_stops_when_told_and_again_when_told_after_a_resumption(config: RunConfig, tmp_path: Path) -> None:
    for _ in range(2):
        coordinator = Coordinator(stop_after=1)
        result = run_training(config, RunFolder(tmp_path), coordinator)
        assert (result.outcome, result.epochs, result.best_epoch) == ("stopped", 1, 1)
        assert [epoch for epoch, _ in coordinator.heard] == [1]
    assert list((tmp_path / "artifacts" / "overlays").iterdir())


def test_run_training_goes_on_with_smaller_micro_batches_when_memory_ran_out_before(
    undisturbed: tuple[Path, TrainingResult, Coordinator],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_training(config, RunFolder(tmp_path), Coordinator(stop_after=1))
    sizes, build_loader = [], run_module.build_loader
    monkeypatch.setattr(
        run_module, "build_loader", lambda *a, **k: sizes.append(k["batch_size"]) or build_loader(*a, **k)
    )
    settings = {"training.accumulation": 2}
    heard = Coordinator(stop_after=2)
    run_training(replace_settings(config, settings), RunFolder(tmp_path), heard)
    assert sizes == [config.training.batch_size // 2] and [epoch for epoch, _ in heard.heard] == [1, 2]
    whole, halved = undisturbed[2].heard[1][1], heard.heard[1][1]
    assert halved["train/learning_rate"] == whole["train/learning_rate"]
    assert halved["train/loss/total"] == pytest.approx(whole["train/loss/total"], rel=0.2)


@pytest.mark.parametrize(("direction", "best_epoch"), [("maximize", 1), ("minimize", 2)])
def test_run_training_keeps_the_last_epoch_beside_the_best_value_when_told_so(
    config: RunConfig, tmp_path: Path, direction: str, best_epoch: int
) -> None:
    wanted = config.model_copy(update={"keep": "last", "direction": direction, "metric": "train/loss/total"})
    wanted = replace_settings(wanted, {"training.epochs": 2})
    coordinator = Coordinator()
    result = run_training(wanted, RunFolder(tmp_path), coordinator)
    assert result.best_epoch == best_epoch
    assert result.best_value == coordinator.heard[best_epoch - 1][1]["train/loss/total"]
    assert result.checkpoint is not None
    assert load_checkpoint(result.checkpoint)["state"].epoch == 2
    assert result.metrics == coordinator.heard[-1][1]


def test_run_training_ends_early_on_its_whole_schedule_when_given_a_stop_epoch(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig, tmp_path: Path
) -> None:
    wanted = config.model_copy(update={"keep": "last", "stop_epoch": 2})
    for _ in range(2):
        result = run_training(wanted, RunFolder(tmp_path), Coordinator())
        assert (result.outcome, result.epochs) == ("complete", 2)
    assert scores(result.metrics) == scores(undisturbed[2].heard[1][1])
    assert load_checkpoint(tmp_path / "best.pt")["state"].epoch == 2


def test_run_training_learns_in_bfloat16_with_accumulation_and_clipping(config: RunConfig) -> None:
    settings = {"training.precision": "bfloat16", "training.accumulation": 2, "training.clip_norm": 5.0}
    coordinator = Coordinator(stop_after=2)
    run_training(replace_settings(config, settings), NullTracker(), coordinator)
    first, second = (metrics["train/loss/total"] for _, metrics in coordinator.heard)
    assert second < first


UNET = {
    "model.family": "unet",
    "model.start_channels": 4,
    "model.depth": 2,
    "metric": "val/semantic/miou",
    "data.scale_jitter": (1.0, 1.0),
}


def test_run_training_weighs_classes_by_the_pixels_of_its_own_images(config: RunConfig, tmp_path: Path) -> None:
    """Against the label files, counted by the official table and weighed by ENet's formula."""
    settings = {**UNET, "model.class_weights": "balanced"}
    run_training(replace_settings(config, settings), RunFolder(tmp_path), Coordinator(stop_after=1))
    assert config.data.root is not None
    counts = np.zeros(19)
    for path in Path(config.data.root).glob("gtFine/train/aachen/*_labelIds.png"):
        raster = np.asarray(Image.open(path))
        for label in official_labels:
            if 0 <= label.trainId < 19:
                counts[label.trainId] += (raster == label.id).sum()
    assert (counts > 0).sum() == 3
    expected = 1 / np.log(1.02 + counts / counts.sum())
    np.testing.assert_allclose(weights(tmp_path / "best.pt")["class_weights"], expected, rtol=1e-6)


def test_run_training_draws_images_of_rare_classes_more_often_when_told_so(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of six has cars: worth sqrt(6) of the others, which is 1.97 of an epoch's 6 images."""
    for number in range(6):
        write_frame(tmp_path / "tree", "train", "aachen", number, empty=number != 3)
    write_frame(tmp_path / "tree", "train", "bonn", 0)
    drawn: list[Counter[str]] = []

    def spy(cache: ImageCache, *args: Any, train: bool, **rest: Any) -> Iterable[Batch]:
        batches = build_loader(cache, *args, train=train, **rest)
        drawn.append(Counter(cache.names[index] for batch in batches for index in batch.indices))
        return batches

    monkeypatch.setattr(run_module, "build_loader", spy)
    settings = {**UNET, "data.root": str(tmp_path / "tree"), "data.repeat_threshold": 1.0, "cache": str(tmp_path)}
    run_training(replace_settings(config, settings), NullTracker(), Coordinator())
    assert [sum(names.values()) for names in drawn] == [6] * 4
    rare = sum((names["aachen_000003_000019"] for names in drawn), 0)
    assert 7 <= rare <= 8 and all(max(names.values()) <= 2 for names in drawn)
    drawn.clear()
    run_training(replace_settings(config, settings | {"data.repeat_threshold": 0.0}), NullTracker(), Coordinator())
    assert all(set(names.values()) == {1} for names in drawn)


def test_run_training_needs_no_folder(config: RunConfig) -> None:
    result = run_training(config, NullTracker(), Coordinator(stop_after=1))
    assert (result.outcome, result.checkpoint) == ("stopped", None)


def test_run_training_reports_progress_in_the_order_of_things(config: RunConfig, tmp_path: Path) -> None:
    seen: list[Progress] = []
    fresh = config.model_copy(update={"cache": str(tmp_path / "cache")})
    run_training(fresh, NullTracker(), Coordinator(stop_after=1), on_progress=seen.append)
    phases = list(dict.fromkeys((p.phase, p.epoch) for p in seen))
    assert phases == [("cache", 0), ("train", 1), ("validate", 1)]
    last = [p for p in seen if p.phase == "train"][-1]
    assert (last.step, last.steps, last.epochs) == (3, 3, 4)
    assert last.loss is not None and last.images_per_s is not None
    assert (seen[-1].step, seen[-1].steps) == (2, 2)


def test_run_training_trains_on_train_and_judges_on_val_when_promoting(config: RunConfig) -> None:
    sets = {"train_set": {"split": "train"}, "validation_set": {"split": "val"}}
    wanted = RunConfig.model_validate({**config.model_dump(), **sets, "kind": "promotion"})
    seen: list[Progress] = []
    run_training(wanted, NullTracker(), Coordinator(stop_after=1), on_progress=seen.append)
    assert {p.steps for p in seen if p.phase == "train"} == {4}
    assert {p.steps for p in seen if p.phase == "validate"} == {2}


def test_run_training_ends_with_nan_when_the_learning_rate_is_absurd(config: RunConfig, tmp_path: Path) -> None:
    settings = {"training.optimizer": "sgd", "training.learning_rate": 1e9, "training.warmup_fraction": 0.0}
    with pytest.raises(TrainingError, match=r"Lower training\.learning_rate") as caught:
        run_training(replace_settings(config, settings), RunFolder(tmp_path), Coordinator())
    assert caught.value.reason == "nan"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (OSError(28, "No space left on device"), "disk"),
    ],
)
def test_run_training_names_the_reason_when_a_resource_runs_out(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "train_epoch", fail)
    with pytest.raises(TrainingError) as caught:
        run_training(config, NullTracker(), Coordinator())
    assert caught.value.reason == reason


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError(2, "gone")])
def test_run_training_leaves_other_errors_as_they_are(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "train_epoch", fail)
    with pytest.raises(type(error)) as caught:
        run_training(config, NullTracker(), Coordinator())
    assert caught.value is error


def test_run_training_refuses_before_any_work_when_the_objective_is_never_reported(config: RunConfig) -> None:
    wanted = config.model_copy(
        update={"metric": "val/coco/segm/map", "data": config.data.model_copy(update={"root": "/no"})}
    )
    with pytest.raises(ConfigError, match=r"got 'val/coco/segm/map'.*val/coco/segm/ap50"):
        run_training(wanted, NullTracker(), Coordinator())


def test_run_training_says_so_when_the_objective_has_no_value(config: RunConfig, tmp_path: Path) -> None:
    wanted = config.model_copy(update={"metric": "val/coco/segm/ap/class/train"})
    with pytest.raises(DataError, match=r"ap/class/train must have a value, but the 2 validation images"):
        run_training(wanted, RunFolder(tmp_path), Coordinator())
    assert not (tmp_path / "last.pt").exists()


def test_run_training_refuses_when_the_dataset_is_another_one_or_none(config: RunConfig) -> None:
    with pytest.raises(DataError, match="must be the one the study began with"):
        run_training(config.model_copy(update={"fingerprint": "0" * 16}), NullTracker(), Coordinator())
    with pytest.raises(ConfigError, match=r"`data\.root` must be"):
        run_training(replace_settings(config, {"data.root": None}), NullTracker(), Coordinator())


def test_run_training_refuses_when_the_folder_holds_another_training(
    undisturbed: tuple[Path, TrainingResult, Coordinator], config: RunConfig
) -> None:
    folder = undisturbed[0]
    with pytest.raises(ConfigError, match=r"has training\.weight_decay = 0\.0001 where 0\.5 is asked for"):
        run_training(replace_settings(config, {"training.weight_decay": 0.5}), RunFolder(folder), Coordinator())
    renamed = config.model_copy(update={"cache": config.cache, "device": "auto"})
    assert run_training(renamed, RunFolder(folder), Coordinator()).outcome == "complete"


def test_run_training_writes_torchvisions_anchors_when_they_are_default(config: RunConfig, tmp_path: Path) -> None:
    wanted = replace_settings(config, {"model.anchors": "default", "model.anchor_table": None})
    run_training(wanted, RunFolder(tmp_path), Coordinator(stop_after=1))
    found = json.loads((tmp_path / "artifacts" / "anchors.json").read_text())
    assert found["sizes"] == [list(row) for row in DEFAULT_ANCHORS.sizes]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_run_training_trains_and_resumes_when_on_cuda(config: RunConfig, tmp_path: Path) -> None:
    wanted = config.model_copy(update={"device": "cuda"})
    with pytest.raises(KeyboardInterrupt):
        run_training(wanted, RunFolder(tmp_path), Coordinator(die_after=2))
    second = Coordinator()
    result = run_training(wanted, RunFolder(tmp_path), second)
    assert result.outcome == "complete"
    assert second.heard[-1][1]["system/gpu_memory_gib"] > 0
    assert second.heard[-1][1]["train/loss/total"] < read_records(tmp_path)[0][0].metrics["train/loss/total"]


@pytest.mark.parametrize("weights", ["none", "coco", "a/path.pt"])
def test_checkpoint_of_old_is_of_the_training_that_goes_on(config: RunConfig, weights: str) -> None:
    """It was written when there was no `model.rider_from`, and COCO's heads started afresh."""
    model = replace_section(config.model, weights=weights, rider_from="none" if weights == "coco" else "person")
    wanted = replace_section(config, model=model)
    found = wanted.model_dump(mode="json")
    del found["model"]["rider_from"]
    check_same_training(wanted, found, Path("last.pt"))
    with pytest.raises(ConfigError, match=r"seed = \d+ where 77 is asked for"):
        check_same_training(replace_section(wanted, seed=77), found, Path("last.pt"))
