"""Two real processes (gloo) train tiny models together; one process is what they are compared with."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cityopt.config import RunConfig
from cityopt.errors import ConfigError
from cityopt.evaluation.evaluate import evaluate_model
from cityopt.settings import replace_settings
from cityopt.tracking.run_folder import RunFolder, begin_attempt, read_records
from cityopt.training.checkpoint import load_checkpoint, load_model
from cityopt.training.dataset import prepare_data
from cityopt.training.distributed import ALONE, open_ranks
from cityopt.training.run import TrainingResult, run_training

SCRIPT = Path(__file__).with_name("two_ranks.py")
CPU = torch.device("cpu")
LOSS, MIOU = "val/loss/total", "val/semantic/miou"
SAME = {LOSS: 1e-4, MIOU: 1e-4}
"""What two processes may differ by from one: float32 sums in another order, over three steps."""


def make_config(config: RunConfig, name: str, devices: int, model: dict[str, Any]) -> RunConfig:
    """Return a training of two epochs; without zoom, no pixel is void, so that shares of a batch weigh the same."""
    fresh = config.model_dump() | {"name": name, "devices": devices}
    settings: dict[str, Any] = {"training.epochs": 2, "data.scale_jitter": (1.0, 1.0)}
    if "family" in model:
        fresh |= {"metric": MIOU}
        model = {"weights": "none", "freeze_depth": 0, "start_channels": 8, "depth": 2, **model}
        fresh["model"] = model
    else:
        fresh["model"] = fresh["model"] | model
    return replace_settings(RunConfig.model_validate(fresh), settings)


def make_configs(config: RunConfig, devices: int) -> dict[str, RunConfig]:
    models: dict[str, dict[str, Any]] = {
        "group": {"family": "unet", "norm": "group"},
        "batch": {"family": "unet", "norm": "batch"},
        "mask": {"backbone_norm": "frozen"},
        "begun_alone": {"family": "unet", "norm": "group"},
        "begun_by_two": {"family": "unet", "norm": "group"},
        "accumulated": {"family": "unet", "norm": "group"},
        "nan": {"family": "unet", "norm": "group"},
    }
    made = {name: make_config(config, name, devices, model) for name, model in models.items()}
    # Adam moves a bias before a batch norm, whose gradient is nothing but rounding, as far as any other weight.
    made["batch"] = replace_settings(made["batch"], {"training.optimizer": "sgd", "training.learning_rate": 0.1})
    made["accumulated"] = replace_settings(made["accumulated"], {"training.batch_size": 4, "training.accumulation": 2})
    return made


def train_alone(config: RunConfig, folder: Path, *, stop_after: int = 99) -> TrainingResult:
    return run_training(config, RunFolder(folder), lambda epoch, _: "stop" if epoch >= stop_after else "continue")


@pytest.fixture(scope="module")
def alone(config: RunConfig) -> dict[str, RunConfig]:
    return make_configs(config, devices=1)


@pytest.fixture(scope="module")
def story(config: RunConfig, alone: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks have done what `two_ranks.py` says."""
    folder = tmp_path_factory.mktemp("ranks")
    train_alone(alone["begun_alone"], folder / "begun_alone", stop_after=1)
    run_two(folder, make_configs(config, devices=2), "gloo")
    return folder


def run_two(folder: Path, configs: dict[str, RunConfig], backend: str, num_gpus: int = 1) -> None:
    """Let two ranks do what `two_ranks.py` says."""
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(config.model_dump_json())
        begin_attempt(folder / name, "")
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    # Where cityopt and what it needs are not installed, pytest alone has them on its path.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment |= {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "PYTHONPATH": path}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), backend],
            env=environment | {"LOCAL_RANK": str(rank % num_gpus)},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(240) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture(scope="module")
def found(story: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [torch.load(story / f"found-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def undisturbed(alone: dict[str, RunConfig], story: Path) -> TrainingResult:
    """One process, on the batches of two."""
    return train_alone(alone["group"], story / "one process")


def assert_same_scores(a: dict[str, float], b: dict[str, float]) -> None:
    for name, tolerance in SAME.items():
        assert a[name] == pytest.approx(b[name], abs=tolerance), name


@pytest.mark.slow
def test_spread_gives_the_leader_everything_in_order_when_items_do_not_divide(found: list[dict[str, Any]]) -> None:
    assert found[0]["dealt"] == [(1, 0), (4, 1), (9, 0)] and found[1]["dealt"] == []
    assert [one["shared"] for one in found] == [0, 0]


@pytest.mark.slow
def test_gradients_are_the_mean_of_all_ranks_when_one_sees_no_instance(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["gradients"]["gradients"] == one["gradients"]["trained"] > 40
        assert one["gradients"]["difference"] < 1e-6


@pytest.mark.slow
def test_batch_norm_of_two_ranks_equals_torchs_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["norm"].keys() == {
            "output",
            "input gradient",
            "weight gradient",
            "bias gradient",
            "mean",
            "variance",
        }
        assert max(one["norm"].values()) < 1e-4  # sums of 140 float32 numbers


@pytest.mark.slow
def test_two_processes_score_as_one_when_the_batch_is_the_same(
    found: list[dict[str, Any]], undisturbed: TrainingResult
) -> None:
    assert found[0]["group"]["heard"] == [1, 2] and found[1]["group"]["heard"] == []
    assert found[0]["group"]["metrics"].keys() == undisturbed.metrics.keys()
    assert found[0]["group"]["metrics"] == found[1]["group"]["metrics"]
    assert_same_scores(found[0]["group"]["metrics"], undisturbed.metrics)
    assert undisturbed.metrics[MIOU] > 0.05


@pytest.mark.slow
def test_two_processes_score_as_one_when_both_accumulate(
    found: list[dict[str, Any]], alone: dict[str, RunConfig], story: Path
) -> None:
    result = train_alone(alone["accumulated"], story / "one process, accumulating")
    assert_same_scores(found[0]["accumulated"]["metrics"], result.metrics)


@pytest.mark.slow
def test_two_processes_score_as_one_when_batch_norm_learns(
    found: list[dict[str, Any]], alone: dict[str, RunConfig], story: Path
) -> None:
    place = story / "one process, batch norm"
    assert_same_scores(found[0]["batch"]["metrics"], train_alone(alone["batch"], place).metrics)
    ours, theirs = (load_checkpoint(path / "last.pt")["model"] for path in (story / "batch", place))
    statistics = [name for name in theirs if "running" in name]
    assert ours.keys() == theirs.keys() and len(statistics) == 20
    for name in statistics:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_train_a_detector_as_one_but_for_what_is_sampled(
    found: list[dict[str, Any]], alone: dict[str, RunConfig], story: Path
) -> None:
    result = train_alone(alone["mask"], story / "one process, detector")
    for name in ("objectness", "classifier", "mask", "total"):
        loss = f"train/loss/{name}"
        assert found[0]["mask"]["metrics"][loss] == pytest.approx(result.metrics[loss], rel=0.1), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask", "group"])
def test_gathered_metrics_equal_those_of_one_process_when_the_weights_are_the_same(
    found: list[dict[str, Any]], alone: dict[str, RunConfig], story: Path, name: str
) -> None:
    config = alone[name]
    cache = prepare_data(config).validation
    model = load_model(story / name / "last.pt")[0]
    scores = evaluate_model(model, cache, range(len(cache)), device=CPU, batch_size=8)
    last = read_records(story / name)[0][-1].metrics
    ours = {key: value for key, value in last.items() if key.startswith("val/")}
    assert ours == {key: value for key, value in scores.items() if math.isfinite(value)} and len(ours) > 5


@pytest.mark.slow
def test_training_goes_on_in_another_number_of_processes_when_it_was_stopped(
    found: list[dict[str, Any]], alone: dict[str, RunConfig], story: Path, undisturbed: TrainingResult
) -> None:
    assert found[0]["begun_alone"]["heard"] == [1, 2]
    assert_same_scores(found[0]["begun_alone"]["metrics"], undisturbed.metrics)
    assert found[0]["begun_by_two"]["heard"] == [1] and found[1]["begun_by_two"]["epochs"] == 1
    result = train_alone(alone["begun_by_two"], story / "begun_by_two")
    assert result.epochs == 2
    assert_same_scores(result.metrics, undisturbed.metrics)
    for name in ("begun_alone", "begun_by_two"):
        assert [record.step for record in read_records(story / name)[0]] == [1, 2]


@pytest.mark.slow
def test_only_the_leader_writes(found: list[dict[str, Any]], story: Path) -> None:
    assert found[0]["mask"]["checkpoint"] == str(story / "mask" / "best.pt")
    assert found[1]["mask"]["checkpoint"] == "None"
    assert not list(story.glob("**/*.partial"))


@pytest.mark.slow
def test_all_ranks_end_with_nan_when_one_of_them_meets_it(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["nan"]["reason"] == "nan" and one["nan"]["heard"] == []
        assert "by step 1 of the epoch" in one["nan"]["message"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_ranks_train_on_cuda(config: RunConfig, tmp_path: Path) -> None:
    """By NCCL with two GPUs or more; two ranks on one GPU by gloo, which NCCL refuses."""
    num_gpus = torch.cuda.device_count()
    configs = {name: one.model_copy(update={"device": "cuda"}) for name, one in make_configs(config, devices=2).items()}
    run_two(tmp_path, configs, "cpu:gloo,cuda:nccl" if num_gpus > 1 else "cpu:gloo,cuda:gloo", num_gpus)
    first, second = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    for name in ("group", "batch", "mask"):
        assert first[name]["epochs"] == 2 and first[name]["metrics"] == second[name]["metrics"]
        result = train_alone(configs[name].model_copy(update={"devices": 1}), tmp_path / f"alone-{name}")
        loss = "train/loss/total"
        assert first[name]["metrics"][loss] == pytest.approx(result.metrics[loss], rel=0.1 if name == "mask" else 0.02)


def test_one_process_shares_with_nobody() -> None:
    assert ALONE.leads and ALONE.share("x") == "x"
    assert list(ALONE.spread(str, [1, 2])) == ["1", "2"]
    assert torch.equal(ALONE.average(torch.ones(2)), torch.ones(2))


def test_training_on_devices_is_refused_when_it_runs_in_another_number_of_processes(
    alone: dict[str, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = alone["group"].model_copy(update={"devices": 2})
    with pytest.raises(ConfigError, match=r"one of 1\. Start it with torchrun --nproc-per-node 2, or .* --devices 2"):
        train_alone(config, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="one of 4"), open_ranks("cpu", 2):
        pass


def test_one_device_trains_alone_when_a_launcher_set_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with open_ranks("cpu", 1) as ranks:
        assert ranks is ALONE
