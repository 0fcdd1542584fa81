"""What a training costs, measured: a few real steps and validated images at its size, on its device.

What is measured is the training's own epoch on some of its images, so that loaders, model, optimiser and metrics are
those of the real one. A worker does it (`cityopt plan`), with the threads, the device and the neighbours of a trial.
"""

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cityopt.config import RunConfig
from cityopt.evaluation.evaluate import choose_batch_size
from cityopt.runtime import GIB, measure_memory_gib, repeatable, resolve_device, set_threads
from cityopt.tracking.run_folder import NullTracker
from cityopt.training.checkpoint import save_checkpoint
from cityopt.training.costs import TrainingCosts
from cityopt.training.dataset import TrainingData, prepare_data
from cityopt.training.distributed import ALONE
from cityopt.training.failures import naming_failures
from cityopt.training.loop import count_steps
from cityopt.training.progress import OnProgress, ProgressMeter
from cityopt.training.run import ADVICE, Trainer

WARM_STEPS = 3
TARGET_S = 12.0
"""Seconds that are measured of training steps, and of validated images."""
MIN_STEPS = 6


def measure_costs(config: RunConfig, *, on_progress: OnProgress | None = None) -> TrainingCosts:
    """Train and validate on some of a training's images, against the clock; nothing is kept.

    Raises what `run_training` raises, `oom` included.
    """
    device = resolve_device(config.device)
    set_threads(config.threads)
    with repeatable(device), naming_failures(ADVICE):
        progress = ProgressMeter(on_progress, config.last_epoch)
        data = prepare_data(config, progress.show)
        steps, images = count_steps(len(data.train), config.training), len(data.validation)
        batch = choose_batch_size(config.data.size)
        warm = _Part(config, data, WARM_STEPS, batch, progress)
        warm.measure()
        enough = max(MIN_STEPS, math.ceil(TARGET_S / warm.step_s)), math.ceil(TARGET_S / warm.image_s / batch) * batch
        part = _Part(config, data, min(enough[0], steps), min(max(enough[1], 2 * batch), images), progress)
        part.measure()
        save_s, end_s, checkpoint_gib = part.time_ending()
        return TrainingCosts(
            epochs=config.last_epoch,
            steps=steps,
            step_s=part.step_s,
            images=images,
            image_s=part.image_s,
            begin_s=part.begin_s,
            save_s=save_s,
            end_s=end_s,
            cold_s=max(0.0, warm.begin_s - part.begin_s + warm.epoch_s - warm.estimate_epoch(part)),
            memory_gib=part.memory_gib,
            checkpoint_gib=checkpoint_gib,
            batch_size=config.training.batch_size,
            pixels=config.data.size[0] * config.data.size[1],
        )


class _Part:
    """A training on so many of its steps and validated images."""

    def __init__(
        self, config: RunConfig, data: TrainingData, num_steps: int, num_images: int, progress: ProgressMeter
    ) -> None:
        begin = time.perf_counter()
        num_train = min(num_steps * config.training.batch_size, len(data.train))
        device = resolve_device(config.device)
        self.trainer = Trainer(config, NullTracker(), _pick(data, num_train, num_images), device, progress, ALONE)
        self.trainer.start_or_resume(None)
        self.trainer.join()
        self.begin_s = time.perf_counter() - begin
        self.num_images = min(num_images, len(data.validation))

    def measure(self) -> None:
        """Run one epoch."""
        metrics = self.trainer.run_epoch()
        self.epoch_s = metrics["system/epoch_s"]
        self.step_s = (metrics["system/epoch_s"] - metrics["system/val_s"]) / self.trainer.steps_per_epoch
        self.image_s = metrics["system/val_s"] / self.num_images
        self.memory_gib = metrics.get("system/gpu_memory_gib", measure_memory_gib())

    def estimate_epoch(self, other: "_Part") -> float:
        """Return the seconds of this part's epoch if each step and image took what they take in another part."""
        return self.trainer.steps_per_epoch * other.step_s + self.num_images * other.image_s

    def time_ending(self) -> tuple[float, float, float]:
        """Return the seconds that a checkpoint takes, those of what follows the last one, and a checkpoint's GiB."""
        trainer = self.trainer
        with tempfile.TemporaryDirectory(dir=trainer.config.cache) as folder:
            path, begin = Path(folder) / "last.pt", time.perf_counter()
            save_checkpoint(
                path,
                model=trainer.model,
                optimizer=trainer.optimizer,
                state=trainer.state,
                config=trainer.config,
                environment=trainer.environment,
            )
            saved = time.perf_counter()
            trainer.show_kept(path)
            return saved - begin, time.perf_counter() - saved, path.stat().st_size / GIB


def _pick(data: TrainingData, num_train: int, num_images: int) -> TrainingData:
    """Return the data of a training on images that are spread over all of it."""
    train, validation = _spread(len(data.train), num_train), _spread(len(data.validation), num_images)
    return replace(
        data,
        train=data.train.select(data.train.names[place] for place in train),
        train_facts=[data.train_facts[place] for place in train],
        validation=data.validation.select(data.validation.names[place] for place in validation),
        validation_facts=[data.validation_facts[place] for place in validation],
    )


def _spread(total: int, wanted: int) -> list[int]:
    """Return `wanted` of the places in 0..total - 1, at even distances."""
    return [int(place) for place in np.unique(np.linspace(0, total - 1, min(wanted, total)).round())]
