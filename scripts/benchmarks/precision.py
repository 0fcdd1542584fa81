"""Benchmark: does a U-Net learn as well in bfloat16 as in float32?

Both are trained with the same seeds, on the same synthetic scenes, and judged on the same held-out ones by their
`val/semantic/miou` of the last epoch. `unet-bfloat16` is the difference of the means over the seeds, beside what chance
makes of it: the half width of its 95 % confidence interval (Welch's t). Within that, nothing tells the two apart.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Literal

from scipy import stats

from benchmarks.measuring import Bound, Row
from benchmarks.training_step import SWEEPS, choose_device, name_device
from cityopt.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from cityopt.data.synthetic import write_synthetic
from cityopt.image_set import ImageSet
from cityopt.settings import replace_section
from cityopt.study_file import load_study
from cityopt.tracking.run_folder import NullTracker
from cityopt.training.run import run_training

SEEDS = (0, 1, 2)
METRIC = "val/semantic/miou"
BOUND = Bound("ratio", "<=", 1)


def bench_precision(*, quick: bool) -> list[Row]:
    """Train with each precision and seed; quick: two seeds, one epoch, a few small scenes."""
    seeds, num_images, epochs, size = (SEEDS[:2], 8, 1, (32, 64)) if quick else (SEEDS, 200, 12, (128, 256))
    study = load_study(str(SWEEPS / "unet.yaml"))
    data = replace_section(study.data, size=size, num_workers=0)
    model = replace_section(study.model, start_channels=4) if quick else study.model
    training = replace_section(study.training, epochs=epochs, batch_size=2 if quick else 8)
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder) / "scenes", num_images=num_images, size=(256, 512), seed=0)
        scores = {
            precision: [
                train(data, model, replace_section(training, precision=precision), Path(folder), seed) for seed in seeds
            ]
            for precision in ("bfloat16", "float32")
        }
    half, single = scores["bfloat16"], scores["float32"]
    unit = (
        f"difference of mean {METRIC} over {len(seeds)} seeds: {describe(half)} in bfloat16, {describe(single)} in "
        f"float32; {epochs} epochs, {name_device(choose_device())}; peer: half of its 95 % interval (Welch)"
    )
    return [Row("unet-bfloat16", abs(fmean(half) - fmean(single)), find_half_width(half, single), unit, BOUND)]


def train(data: DataConfig, model: ModelConfig, training: TrainingConfig, folder: Path, seed: int) -> float:
    """Train once and return the score of the last epoch."""
    scores: list[float] = []
    images = {"holdout_fraction": 0.25, "seed": 0}
    run = RunConfig(
        study="precision",
        name=f"{training.precision}-{seed}",
        kind="trial",
        seed=seed,
        threads=1,
        cache=str(folder / "cache"),
        data=replace_section(data, root=str(folder / "scenes")),
        model=model,
        training=training,
        train_set=ImageSet.model_validate({"part": "subset", **images}),
        validation_set=ImageSet.model_validate({"part": "holdout", **images}),
        metric=METRIC,
    )

    def keep(_: int, metrics: dict[str, float]) -> Literal["continue"]:
        scores.append(metrics[METRIC])
        return "continue"

    run_training(run, NullTracker(), keep)
    return scores[-1]


def find_half_width(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the difference of two means, by Welch."""
    parts = [variance(values) / len(values) for values in (ours, theirs)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True)
    )
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def describe(scores: Sequence[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{fmean(scores):.4f} ± {stdev(scores):.4f}"
