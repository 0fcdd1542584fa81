import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from cityopt.config import RunConfig
from cityopt.errors import TrainingError, WeightsError
from cityopt.models.build import SegmentationModel, build_model
from cityopt.runtime import restore_rng
from cityopt.training.checkpoint import (
    EpochRecord,
    TrainingState,
    load_checkpoint,
    load_model,
    save_checkpoint,
)

STATE = TrainingState(2, 10, 1.5, 1, 0.25, [EpochRecord(1, 1000, {"a": 0.25}), EpochRecord(2, 2000, {"a": 0.125})])


def save(path: Path, config: RunConfig) -> SegmentationModel:
    torch.manual_seed(0)
    model = build_model(config.model)
    optimizer = AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_checkpoint(
        path, model=model, optimizer=optimizer, state=STATE, config=config, environment={"torch": torch.__version__}
    )
    return model


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_load_checkpoint_returns_all_that_was_saved(tmp_path: Path, config: RunConfig) -> None:
    model = save(tmp_path / "last.pt", config)
    expected = torch.rand(3)
    found = load_checkpoint(tmp_path / "last.pt")
    assert found["state"] == STATE
    assert RunConfig.model_validate(found["config"]) == config
    assert found["environment"] == {"torch": torch.__version__}
    assert all(torch.equal(value, found["model"][key]) for key, value in model.state_dict().items())
    assert all(state["step"] == 1 for state in found["optimizer"]["state"].values())
    restore_rng(found["rng"])
    assert torch.equal(torch.rand(3), expected)
    assert list_names(tmp_path) == ["last.pt"]


def test_load_model_predicts_as_the_saved_one_did(tmp_path: Path, config: RunConfig) -> None:
    model = save(tmp_path / "best.pt", config).eval()
    found, found_config = load_model(tmp_path / "best.pt")
    assert found_config == config
    assert not found.training
    image = torch.rand(3, 64, 96)
    expected, prediction = model.predict([image])[0], found.predict([image])[0]
    assert prediction.boxes_xyxy.tobytes() == expected.boxes_xyxy.tobytes()
    assert len(expected.scores)


def test_load_model_rebuilds_without_download_when_weights_were_pretrained(tmp_path: Path, config: RunConfig) -> None:
    coco = config.model_copy(update={"model": config.model.model_copy(update={"weights": "coco"})})
    model = save(tmp_path / "best.pt", config)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    torch.save({**content, "config": coco.model_dump(mode="json")}, tmp_path / "best.pt")
    found, found_config = load_model(tmp_path / "best.pt")
    assert found_config == coco
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in model.state_dict().items())


def test_load_checkpoint_refuses_when_file_is_missing_truncated_or_foreign(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(WeightsError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    save(tmp_path / "last.pt", config)
    whole = (tmp_path / "last.pt").read_bytes()
    for name, content in {
        "cut": whole[:5000],
        "empty": b"",
        "text": b"no checkpoint at all",
        "image": b"\x89PNG\r\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name} must be a (whole )?checkpoint of cityopt"):
            load_checkpoint(tmp_path / name)
    torch.save({"model": {}}, tmp_path / "foreign")
    with pytest.raises(WeightsError, match="holds something else"):
        load_checkpoint(tmp_path / "foreign")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/never",)


def test_load_checkpoint_refuses_when_file_holds_code(tmp_path: Path) -> None:
    torch.save({"format": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="more than numbers and text"):
        load_checkpoint(tmp_path / "evil.pt")


def test_load_model_refuses_when_weights_do_not_fit_the_config(tmp_path: Path, config: RunConfig) -> None:
    save(tmp_path / "best.pt", config)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    content["model"].popitem()
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=r"best\.pt does not fit"):
        load_model(tmp_path / "best.pt")


@contextmanager
def limit_file_size(num_bytes: int) -> Iterator[None]:
    """Let writing fail beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_save_checkpoint_keeps_the_earlier_file_when_the_disk_is_full(tmp_path: Path, config: RunConfig) -> None:
    save(tmp_path / "last.pt", config)
    before = (tmp_path / "last.pt").read_bytes()
    with limit_file_size(99_999), pytest.raises(TrainingError, match="must be written") as caught:
        save(tmp_path / "last.pt", config)
    assert caught.value.reason == "disk"
    assert (tmp_path / "last.pt").read_bytes() == before
    assert list_names(tmp_path) == ["last.pt"]


def test_save_checkpoint_fails_as_disk_when_the_folder_is_gone(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(TrainingError, match="must be written") as caught:
        save(tmp_path / "gone" / "last.pt", config)
    assert caught.value.reason == "disk"
