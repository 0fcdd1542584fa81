import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from cityopt.config import TrainingConfig
from cityopt.data.loaders import Batch
from cityopt.errors import TrainingError
from cityopt.models.masks import Prediction
from cityopt.models.segmentation_model import SegmentationModel, Target
from cityopt.training.loop import (
    LossMeter,
    StepReport,
    choose_precision,
    count_steps,
    group_batches,
    move_batch,
    train_epoch,
)
from cityopt.training.optim import build_optimizer, find_learning_rate

CPU = torch.device("cpu")


class MeanModel(SegmentationModel):
    """Fits the number of instances from the image: losses are means over the batch's images."""

    task = "instance"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3)
        self.seen_dtypes: set[torch.dtype] = set()

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        found = self.layer(torch.stack(list(images))).mean(dim=(1, 2, 3))
        self.seen_dtypes.add(found.dtype)
        wanted = torch.tensor([float(len(target["classes"])) for target in targets], device=found.device)
        return {"square": ((found - wanted) ** 2).mean(), "size": found.abs().mean()}

    def predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        raise NotImplementedError


def make_model() -> MeanModel:
    torch.manual_seed(0)
    return MeanModel()


def make_batches(sizes: Sequence[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for size in sizes:
        images = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(size)]
        targets = [{"classes": torch.ones(i % 3, dtype=torch.int64)} for i in range(size)]
        batches.append(Batch(images, targets, list(range(size))))
    return batches


def join(batches: Sequence[Batch]) -> Batch:
    return Batch([i for b in batches for i in b.images], [t for b in batches for t in b.targets], [])


def run(
    batches: Sequence[Batch], *, device: torch.device = CPU, model: MeanModel | None = None, **settings: object
) -> tuple[MeanModel, dict[str, float], list[StepReport]]:
    training = TrainingConfig.model_validate({"learning_rate": 0.1, "schedule": "constant", **settings})
    model = (model or make_model()).to(device)
    reports: list[StepReport] = []
    means = train_epoch(
        model,
        batches,
        build_optimizer(model, training),
        training,
        device=device,
        first_step=0,
        num_steps=10,
        on_step=reports.append,
    )
    return model, means, reports


def test_train_epoch_equals_a_plain_loop() -> None:
    batches = make_batches([4, 4, 4])
    model, means, reports = run(batches, batch_size=4, clip_norm=0.5)
    plain, training = make_model(), TrainingConfig(learning_rate=0.1, schedule="constant", batch_size=4)
    optimizer = torch.optim.SGD(plain.parameters(), momentum=0.9)
    totals = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = find_learning_rate(step, 10, training)
        losses = plain.loss([image / 255 for image in batch.images], batch.targets)
        total = losses["square"] + losses["size"]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        totals.append(total.item())
    torch.testing.assert_close(model.layer.weight, plain.layer.weight, rtol=1e-3, atol=1e-6)
    assert means["total"] == pytest.approx(sum(totals) / 3, rel=1e-5)
    assert means["total"] == pytest.approx(means["square"] + means["size"])
    assert [report.step for report in reports] == [1, 2, 3]
    assert reports[0].loss == pytest.approx(totals[0], rel=1e-5)


@pytest.mark.parametrize("parts", [[2, 2, 2, 2], [5, 1, 1, 1]])
def test_train_epoch_equals_a_big_batch_when_accumulating(parts: list[int]) -> None:
    batches = make_batches(parts)
    accumulated, means, _ = run(batches, batch_size=8, accumulation=4)
    whole, whole_means, _ = run([join(batches)], batch_size=8)
    torch.testing.assert_close(accumulated.layer.weight, whole.layer.weight, rtol=1e-5, atol=1e-7)
    assert means == pytest.approx(whole_means, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_train_epoch_ends_at_once_when_a_loss_is_not_finite(value: float) -> None:
    class Broken(MeanModel):
        calls = 0

        def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
            self.calls += 1
            losses = super().loss(images, targets)
            return losses if self.calls < 2 else {**losses, "size": losses["size"] + value}

    model = Broken()
    with pytest.raises(TrainingError, match=r"losses must be finite, but size became .* step 2") as caught:
        run(make_batches([2] * 5), model=model, batch_size=2)
    assert caught.value.reason == "nan"
    assert model.calls == 2


def test_train_epoch_notices_when_the_last_step_ruins_the_weights() -> None:
    with pytest.raises(TrainingError, match="weights must be finite") as caught:
        run(make_batches([2]), batch_size=2, learning_rate=1e39)
    assert caught.value.reason == "nan"


def test_train_epoch_leaves_frozen_parameters_as_they_are() -> None:
    model = make_model()
    model.layer.bias.requires_grad_(False)
    before = model.layer.bias.clone()
    run(make_batches([2]), model=model, batch_size=2)
    assert torch.equal(model.layer.bias, before)
    assert model.layer.bias.grad is None


def test_loss_meter_averages_over_steps() -> None:
    meter = LossMeter()
    for value in (1.0, 2.0, 6.0):
        meter.num_steps += 1
        meter.add({"mask": torch.tensor(value), "box": torch.tensor(10 * value)}, 1.0)
    assert meter.compute_means() == {"mask": 3.0, "box": 30.0, "total": 33.0}


def test_group_batches_drops_an_incomplete_group_unless_it_is_the_only_one() -> None:
    batches = make_batches([1] * 5)
    assert [len(group) for group in group_batches(batches, 2)] == [2, 2]
    assert [len(group) for group in group_batches(batches[:1], 2)] == [1]
    assert list(group_batches([], 2)) == []


@pytest.mark.parametrize(("num_images", "expected"), [(3, 1), (8, 1), (15, 1), (16, 2), (400, 50)])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_count_steps_equals_the_groups_that_come(num_images: int, expected: int, accumulation: int) -> None:
    training = TrainingConfig(batch_size=8, accumulation=accumulation)
    micro = 8 // accumulation
    sizes = [micro] * (num_images // micro) or [num_images]
    assert count_steps(num_images, training) == expected == len(list(group_batches(make_batches(sizes), accumulation)))


def test_move_batch_gives_floats_between_0_and_1() -> None:
    batch = make_batches([2])[0]
    images, targets = move_batch(batch, CPU)
    for image, pixels in zip(images, batch.images, strict=True):
        torch.testing.assert_close(image, pixels.double().div(255).float())
    assert torch.equal(targets[1]["classes"], batch.targets[1]["classes"])


def test_choose_precision_takes_bfloat16_on_cuda_alone_when_auto() -> None:
    cuda = torch.device("cuda")
    assert choose_precision(TrainingConfig(), CPU) is None
    assert choose_precision(TrainingConfig(), cuda) is torch.bfloat16
    assert choose_precision(TrainingConfig(precision="float32"), cuda) is None
    assert choose_precision(TrainingConfig(precision="bfloat16"), CPU) is torch.bfloat16


def test_train_epoch_computes_in_bfloat16_and_keeps_float32_weights_when_asked() -> None:
    model, means, _ = run(make_batches([2]), batch_size=2, precision="bfloat16")
    assert model.seen_dtypes == {torch.bfloat16}
    assert model.layer.weight.dtype == torch.float32
    assert means["total"] == pytest.approx(run(make_batches([2]), batch_size=2)[1]["total"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_epoch_equals_the_cpu_when_on_cuda() -> None:
    batches = make_batches([4] * 30)
    on_cpu, cpu_means, _ = run(batches, batch_size=4)
    on_cuda, cuda_means, reports = run(batches, device=torch.device("cuda"), batch_size=4, precision="float32")
    torch.testing.assert_close(on_cuda.layer.weight.cpu(), on_cpu.layer.weight, rtol=1e-2, atol=1e-3)
    assert cuda_means == pytest.approx(cpu_means, rel=1e-2)
    assert [report.step for report in reports if report.loss is not None] == [20]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_epoch_notices_nan_and_computes_in_bfloat16_when_on_cuda() -> None:
    cuda = torch.device("cuda")
    assert run(make_batches([2] * 3), device=cuda, batch_size=2)[0].seen_dtypes == {torch.bfloat16}
    with pytest.raises(TrainingError, match="finite"):
        run(make_batches([2] * 50), device=cuda, batch_size=2, learning_rate=1e12)
