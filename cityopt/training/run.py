"""`run_training`: the one door to training, for sweeps, finalists, promotion and notebooks.

A run can be killed at any moment and called again with the same config and folder. What is true comes first:
at the end of an epoch `last.pt` is replaced (it holds the whole metrics history), then the record is appended to
the tracker, then `on_epoch` hears of it. Whatever a kill cut off is made up for by the next call.

With `devices` above 1 it is called in as many processes, by torchrun (`distributed.py`): each trains its share, and the
leader alone writes, reports and hears answers. How many they are may differ from one call to the next. All are given
the tracker of one folder, in which an attempt has begun.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cityopt.config import RunConfig
from cityopt.data.balance import weigh_images
from cityopt.data.cache import ImageCache
from cityopt.data.loaders import build_loader
from cityopt.data.targets import find_train_ids
from cityopt.errors import ConfigError, DataError
from cityopt.evaluation.confusion import FILE, format_confusion, take_counted
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.labels import VOID
from cityopt.models.build import build_model
from cityopt.models.semantic_model import NUM_CLASSES, SemanticModel
from cityopt.runtime import (
    GIB,
    derive_seed,
    describe_environment,
    measure_memory_gib,
    repeatable,
    restore_rng,
    seed_everything,
    set_threads,
)
from cityopt.settings import validate
from cityopt.study_file import complete_run
from cityopt.tracking.run_folder import BEST, LAST, NullTracker, Tracker, link_atomically
from cityopt.training.checkpoint import (
    EpochRecord,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from cityopt.training.dataset import TrainingData, prepare_data
from cityopt.training.distributed import JointModel, Ranks, open_ranks, place_rank
from cityopt.training.failures import naming_failures
from cityopt.training.loop import StepReport, count_steps, train_epoch
from cityopt.training.objective import check_objective
from cityopt.training.optim import build_optimizer
from cityopt.training.progress import OnProgress, ProgressMeter
from cityopt.training.provenance import flatten_config, write_provenance
from cityopt.training.samples import choose_samples, write_overlays
from cityopt.training.shares import check_shares

UNSCORED_KEYS = {
    *("study", "name", "kind", "device", "devices", "threads", "cache", "data.root", "data.num_workers", "keep"),
    "training.accumulation",
}
"""Settings that may differ between the attempts of one training. Memory may have run out with larger micro-batches."""
ADVICE = "Lower training.batch_size or data.size, or raise training.accumulation."
"""What to do when memory runs out."""

OnEpoch = Callable[[int, dict[str, float]], Literal["continue", "stop"]]
"""Called with a finished epoch, counted from 1, and its metrics."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    outcome: Literal["complete", "stopped"]
    """`stopped`: `on_epoch` said so before all epochs were done."""
    epochs: int
    """Finished epochs."""
    best_epoch: int
    best_value: float
    """The objective at the best epoch."""
    metrics: dict[str, float]
    """Of the epoch whose checkpoint is kept: the best, or with `keep: last` the last."""
    seconds: float
    """Spent on the finished epochs and all around them, over all attempts; without the data's preparation."""
    checkpoint: Path | None
    """The kept checkpoint; None without a folder."""


def run_training(
    config: RunConfig, tracker: Tracker, on_epoch: OnEpoch, *, on_progress: OnProgress | None = None
) -> TrainingResult:
    """Train and validate as the config says, or go on where an earlier call with this folder was cut off.

    After a resumption `on_epoch` hears of the last finished epoch again, since it may never have answered; of
    earlier ones it does not. On a CPU a resumed run equals an undisturbed one to the last bit.

    Raises:
        ConfigError: The objective is never reported, a device is absent, the batch cannot be shared out among the
            devices, or the folder holds another training.
        DataError: The dataset is missing, broken or another one, or the objective has no value on it.
        WeightsError: Pretrained weights cannot be had.
        TrainingError: `nan`, `oom` or `disk`.
        StaleAttemptError: another attempt has taken the run over.
    """
    check_objective(config.metric, config.model)
    check_shares(config)
    with open_ranks(config.device, config.devices) as ranks, naming_failures(ADVICE):
        device = place_rank(config.device, ranks)
        set_threads(config.threads)
        with repeatable(device):
            trainer = _open_trainer(config, tracker, device, ranks, on_progress)
            state, answer = trainer.state, "continue"
            if state.epoch:
                answer = trainer.ask(on_epoch)
            while state.epoch < config.last_epoch and answer == "continue":
                trainer.save_epoch(trainer.run_epoch())
                answer = trainer.ask(on_epoch)
            return trainer.finish()


def _open_trainer(
    config: RunConfig, tracker: Tracker, device: torch.device, ranks: Ranks, on_progress: OnProgress | None
) -> "Trainer":
    """Return a training that is ready to begin, or to go on."""
    last = None if tracker.folder is None else tracker.folder / LAST
    if not ranks.leads:
        tracker, on_progress = NullTracker(), None
    progress = ProgressMeter(on_progress, config.last_epoch)
    with ranks.leader_first():
        trainer = Trainer(config, tracker, prepare_data(config, progress.show), device, progress, ranks)
        trainer.start_or_resume(last)
    trainer.join()
    return trainer


class Trainer:
    """One training in progress: the model, its optimiser, how far it has come, and where that is recorded."""

    def __init__(
        self,
        config: RunConfig,
        tracker: Tracker,
        data: TrainingData,
        device: torch.device,
        progress: ProgressMeter,
        ranks: Ranks,
    ) -> None:
        """Take what a training needs; the model is built by `start_or_resume`. Raises ConfigError: too few images."""
        self.config, self.tracker, self.data, self.device, self.progress = config, tracker, data, device, progress
        self.ranks = ranks
        if ranks.world > 1 and len(data.train) < config.training.batch_size:
            raise ConfigError(
                f"a training on {ranks.world} devices needs at least `training.batch_size` images, but got "
                f"{len(data.train)} images, batch_size={config.training.batch_size}. Use --devices 1."
            )
        self.environment = describe_environment(device)
        self.steps_per_epoch = count_steps(len(data.train), config.training)
        self.images_per_epoch = min(len(data.train), self.steps_per_epoch * config.training.batch_size)
        self.state = TrainingState()
        self._counted = time.perf_counter()
        """Until when the state's seconds are counted."""
        self._judge: SemanticEvaluator | None = None
        self._image_weights = weigh_images(data.train_facts, config.model.task, config.data.repeat_threshold)

    def start_or_resume(self, last: Path | None) -> None:
        """Build model and optimiser, from `last` where that exists, and write down what is being trained."""
        if self.ranks.leads:
            write_provenance(self.tracker, self.config, self.data, self.environment)
        if last is not None and last.exists():
            self._resume(last)
            return
        seed_everything(derive_seed(self.config.seed, "model"))
        self.model = build_model(self.config.model)
        if isinstance(self.model, SemanticModel) and self.config.model.class_weights == "balanced":
            self.model.set_class_weights(count_class_pixels(self.data.train))
        self.model = self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, self.config.training)

    def join(self) -> None:
        """Join the models of all ranks."""
        self._joint = JointModel(self.model, self.ranks)

    def ask(self, on_epoch: OnEpoch) -> Literal["continue", "stop"]:
        """Tell of the last finished epoch, and return the answer, which is that of all ranks."""
        state = self.state
        return self.ranks.share(on_epoch(state.epoch, state.history[-1].metrics) if self.ranks.leads else "continue")

    def run_epoch(self) -> dict[str, float]:
        """Train and validate one epoch and return its metrics; those without a value are left out.

        All randomness of an epoch follows from the run's seed, the epoch's number and the rank.
        """
        epoch, cpu, begin = self.state.epoch + 1, time.process_time(), time.perf_counter()
        own = () if self.ranks.leads else ("rank", self.ranks.rank)
        seed_everything(derive_seed(self.config.seed, "epoch", epoch, *own))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        losses = self._train(epoch)
        trained = time.perf_counter()
        scores = self._validate(epoch)
        end = time.perf_counter()
        metrics = {f"train/loss/{name}": value for name, value in losses.items()} | scores
        metrics |= {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/images_per_s": self.images_per_epoch / (trained - begin),
            "system/epoch_s": end - begin,
            "system/val_s": end - trained,
            "system/rss_gib": measure_memory_gib(),
            "system/cpu_share": (time.process_time() - cpu) / (end - begin) / self.config.threads,
        }
        if self.device.type == "cuda":
            metrics["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        return self.ranks.share({name: float(value) for name, value in metrics.items() if math.isfinite(value)})

    def save_epoch(self, metrics: dict[str, float]) -> None:
        """Count the epoch as finished: checkpoint first, then the record. Raises DataError: no objective."""
        state = self.state
        if self.config.metric not in metrics:
            raise DataError(
                f"the objective {self.config.metric} must have a value, but the {len(self.data.validation)} validation "
                "images hold no such object. Validate on more images or choose another `search.metric`."
            )
        state.epoch += 1
        state.step += self.steps_per_epoch
        state.seconds += self._lap()
        state.history.append(EpochRecord(state.epoch, time.time_ns() // 1_000_000, metrics))
        if self._is_better(metrics[self.config.metric]):
            state.best_epoch, state.best_value = state.epoch, metrics[self.config.metric]
        if self._judge is not None and self._keeps_epoch():
            self.tracker.write_artifact(FILE, format_confusion(take_counted(self._judge.confusion)))
        self._write_checkpoints()
        self._log(state.history[-1])

    def finish(self) -> TrainingResult:
        """Draw what the kept model sees, and sum up."""
        state = self.state
        kept = state.best_epoch if self.config.keep == "best" else state.epoch
        checkpoint = self._path(BEST)
        if checkpoint is not None:
            self.show_kept(checkpoint if kept != state.epoch else None)
        assert state.best_value is not None
        return TrainingResult(
            outcome="complete" if state.epoch == self.config.last_epoch else "stopped",
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            best_value=state.best_value,
            metrics=state.history[kept - 1].metrics,
            seconds=state.seconds + self._lap(),
            checkpoint=checkpoint,
        )

    def show_kept(self, checkpoint: Path | None) -> None:
        """Draw what the model sees, as it is or as a checkpoint has it."""
        if checkpoint is not None:
            self.model.load_state_dict(load_checkpoint(checkpoint)["model"])
        samples = choose_samples(self.data.validation_facts)
        write_overlays(self.tracker, self.model, self.data.validation, samples, self.device)

    def _lap(self) -> float:
        """Return the seconds since the last call, or since there is this training."""
        last, self._counted = self._counted, time.perf_counter()
        return self._counted - last

    def _train(self, epoch: int) -> dict[str, float]:
        training = self.config.training
        self.progress.begin("train", epoch, self.steps_per_epoch, self.state.best_value)
        batches = build_loader(
            self.data.train,
            range(len(self.data.train)),
            data=self.config.data,
            batch_size=training.batch_size // training.accumulation,
            seed=self.config.seed,
            epoch=epoch,
            train=True,
            device=self.device,
            task=self.config.model.task,
            weights=self._image_weights,
            share=(self.ranks.rank, self.ranks.world),
        )

        def show(report: StepReport) -> None:
            steps = self.steps_per_epoch
            self.progress.show(report.step, steps, loss=report.loss, images_per_s=report.images_per_s)

        return train_epoch(
            self.model,
            batches,
            self.optimizer,
            training,
            device=self.device,
            first_step=self.state.step,
            num_steps=self.steps_per_epoch * training.epochs,
            on_step=show,
            joint=self._joint,
        )

    def _validate(self, epoch: int) -> dict[str, float]:
        cache = self.data.validation
        self.progress.begin("validate", epoch, len(cache), self.state.best_value)
        self._judge = SemanticEvaluator() if self.config.model.task == "semantic" else None
        seen = iter(range(1, len(cache) + 1))
        return evaluate_model(
            self.model,
            cache,
            range(len(cache)),
            device=self.device,
            batch_size=choose_batch_size(self.config.data.size),
            on_image=lambda *_: self.progress.show(next(seen), len(cache)),
            semantic_evaluator=self._judge,
            spread=self.ranks.spread,
        )

    def _resume(self, last: Path) -> None:
        """Take up `last.pt`, and make up for what a kill cut off after it was written."""
        content = load_checkpoint(last)
        check_same_training(self.config, content["config"], last)
        self.model = build_model(self.config.model, state=content["model"]).to(self.device)
        self.optimizer = build_optimizer(self.model, self.config.training)
        self.optimizer.load_state_dict(content["optimizer"])
        restore_rng(content["rng"])
        self.state = content["state"]
        if self._keeps_epoch() and self.ranks.leads:
            link_atomically(last, last.with_name(BEST))
        for record in self.state.history:
            self._log(record)  # the tracker keeps what it has: only what is missing is added, under its old time

    def _write_checkpoints(self) -> None:
        last = self._path(LAST)
        if last is None:
            return
        save_checkpoint(
            last,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            config=self.config,
            environment=self.environment,
            may_replace=self.tracker.check_attempt,
        )
        if self._keeps_epoch():
            link_atomically(last, last.with_name(BEST))

    def _keeps_epoch(self) -> bool:
        """Say whether the last epoch's checkpoint is, so far, the run's result (`best.pt`)."""
        return self.config.keep == "last" or self.state.best_epoch == self.state.epoch

    def _log(self, record: EpochRecord) -> None:
        self.tracker.log_metrics(record.metrics, step=record.epoch, time_ms=record.time_ms)

    def _is_better(self, value: float) -> bool:
        best = self.state.best_value
        return best is None or (value > best if self.config.direction == "maximize" else value < best)

    def _path(self, name: str) -> Path | None:
        return None if self.tracker.folder is None else self.tracker.folder / name


def count_class_pixels(cache: ImageCache) -> Tensor:
    """Return the pixels `(C,)` int64 of each training id in all images of a cache."""
    counts = sum(np.bincount(find_train_ids(raster).ravel(), minlength=VOID + 1) for raster in cache.instances)
    return torch.from_numpy(np.asarray(counts)[:NUM_CLASSES].copy())


def check_same_training(config: RunConfig, found: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint is of the training that a config describes. Raises ConfigError: what differs."""
    wanted = flatten_config(config)
    present = flatten_config(validate(RunConfig, complete_run(found, config), origin=str(path)))
    differing = [key for key, value in wanted.items() if value != present[key] and key not in UNSCORED_KEYS]
    if differing:
        texts = ", ".join(f"{key} = {present[key]!r} where {wanted[key]!r} is asked for" for key in differing)
        raise ConfigError(f"{path} must be of the training that goes on there, but has {texts}. Remove the folder.")
