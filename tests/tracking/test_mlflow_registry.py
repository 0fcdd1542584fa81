import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from torch import nn

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking.mlflow_registry import find_champion, register_model, resolve_checkpoint, set_alias
from cityopt.tracking.mlflow_store import MlflowStore

PREDICT = """
import sys
import mlflow.pytorch
import torch

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(sys.argv[2])
torch.manual_seed(3)
images = [torch.rand(3, 4, 5), torch.rand(3, 2, 2)]
print(type(model).__name__, model.training, [float(d["scores"][0]) for d in model(images)])
"""


class MeanDetector(nn.Module):
    """Says how bright each image is, in the form of torchvision's detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [{"scores": self.scale * image.mean()[None]} for image in images]


def make_run(store: MlflowStore, study: str, tmp_path: Path, content: str = "weights") -> tuple[str, Path]:
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_text(content)
    return store.create_run(study, "promotion-0001", "promotion"), checkpoint


def register(store: MlflowStore, study: str, tmp_path: Path, value: float = 0.25) -> tuple[str, int]:
    run_id, checkpoint = make_run(store, study, tmp_path, f"weights of {value}")
    tags = {"val/coco/segm/ap": value, "cityopt.fingerprint": "f" * 64}
    version = register_model(
        store, study, MeanDetector(), checkpoint=checkpoint, run_id=run_id, tags=tags, description="best of 8 trials"
    )
    return run_id, version.version


def test_champion_is_none_when_nothing_is_registered_or_no_alias_is_set(
    mlflow_store: MlflowStore, study: str, tmp_path: Path
) -> None:
    assert find_champion(mlflow_store, study) is None
    register(mlflow_store, study, tmp_path)
    assert find_champion(mlflow_store, study) is None


def test_champion_has_the_tags_it_was_registered_with(mlflow_store: MlflowStore, study: str, tmp_path: Path) -> None:
    run_id, version = register(mlflow_store, study, tmp_path)
    set_alias(mlflow_store, study, "champion", version)
    champion = find_champion(mlflow_store, study)
    assert champion is not None
    assert (champion.name, champion.version, champion.run_id) == (f"cityopt-{study}", 1, run_id)
    assert champion.aliases == ("champion",)
    assert champion.description == "best of 8 trials"
    assert champion.tags["val/coco/segm/ap"] == "0.25"
    assert champion.tags["cityopt.fingerprint"] == "f" * 64


def test_register_model_keeps_one_version_when_a_run_is_registered_again(
    mlflow_store: MlflowStore, study: str, tmp_path: Path
) -> None:
    run_id, checkpoint = make_run(mlflow_store, study, tmp_path)
    for value in (1, 2):
        version = register_model(
            mlflow_store, study, MeanDetector(), checkpoint=checkpoint, run_id=run_id, tags={"value": value}
        )
    assert (version.version, version.tags["value"]) == (1, "2")
    assert register(mlflow_store, study, tmp_path)[1] == 2


@pytest.mark.slow
def test_registered_model_predicts_when_another_process_loads_it(
    mlflow_store: MlflowStore, study: str, tmp_path: Path
) -> None:
    _, version = register(mlflow_store, study, tmp_path)
    set_alias(mlflow_store, study, "champion", version)
    command = [sys.executable, "-c", PREDICT, mlflow_store.tracking_uri, f"models:/cityopt-{study}@champion"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert output.returncode == 0, output.stderr
    torch.manual_seed(3)
    expected = [2 * float(torch.rand(3, 4, 5).mean()), 2 * float(torch.rand(3, 2, 2).mean())]
    assert output.stdout.strip() == f"MeanDetector False {expected}"


def test_resolve_checkpoint_finds_each_kind_of_reference(mlflow_store: MlflowStore, study: str, tmp_path: Path) -> None:
    first, _ = register(mlflow_store, study, tmp_path, 0.1)
    (tmp_path / "best.pt").unlink()
    second, version = register(mlflow_store, study, tmp_path, 0.2)
    set_alias(mlflow_store, study, "champion", version)
    store, name = mlflow_store.store, f"models:/cityopt-{study}"
    assert resolve_checkpoint(store, f"{name}/1").read_text() == "weights of 0.1"
    assert resolve_checkpoint(store, f"{name}/2").read_text() == "weights of 0.2"
    assert resolve_checkpoint(store, f"{name}@champion").read_text() == "weights of 0.2"
    assert resolve_checkpoint(store, first).read_text() == "weights of 0.1"
    run_folder(mlflow_store.store, second).mkdir(parents=True)
    (run_folder(mlflow_store.store, second) / "best.pt").write_text("the folder's own")
    assert resolve_checkpoint(store, second).read_text() == "the folder's own"
    assert resolve_checkpoint(store, str(tmp_path / "best.pt")) == tmp_path / "best.pt"


@pytest.mark.parametrize("reference", ["models:/cityopt-nothing@champion", "models:/cityopt-nothing/7", "no-such.pt"])
def test_resolve_checkpoint_lists_the_models_when_it_finds_none(
    mlflow_store: MlflowStore, study: str, tmp_path: Path, reference: str
) -> None:
    _, version = register(mlflow_store, study, tmp_path)
    set_alias(mlflow_store, study, "challenger", version)
    with pytest.raises(StoreError) as caught:
        resolve_checkpoint(mlflow_store.store, reference)
    assert reference in str(caught.value)
    assert f"models:/cityopt-{study} has /1, @challenger (= /1)" in str(caught.value)


def test_resolve_checkpoint_names_the_run_when_it_has_no_checkpoint(mlflow_store: MlflowStore, study: str) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    with pytest.raises(StoreError, match=f"{run_id} has no checkpoint"):
        resolve_checkpoint(mlflow_store.store, run_id)
    with pytest.raises(StoreError, match="not found"):
        resolve_checkpoint(mlflow_store.store, uuid.uuid4().hex)


@pytest.mark.parametrize("reference", ["models:/cityopt-demo@champion", "0" * 32, "no-such.pt"])
def test_resolve_checkpoint_makes_no_store_when_there_is_none(tmp_path: Path, reference: str) -> None:
    with pytest.raises(StoreError, match="cityopt promote --study NAME"):
        resolve_checkpoint(tmp_path / "nowhere", reference)
    assert not (tmp_path / "nowhere").exists()
