"""What a training tells whoever watches it, at a bounded rate. Importable without torch: the terminal reads it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

MIN_INTERVAL_S = 0.1

Phase = Literal["cache", "train", "validate"]


@dataclass(frozen=True)
class Progress:
    """A glance at a running training. Epochs count from 1; `step` counts images, in `train` optimiser steps."""

    phase: Phase
    epochs: int
    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    images_per_s: float | None = None
    best: float | None = None
    """The objective at the best epoch so far."""


OnProgress = Callable[[Progress], None]


class ProgressMeter:
    """Passes on the latest state of a training, at most ten times a second but always at the end of a phase."""

    def __init__(self, on_progress: OnProgress | None, epochs: int) -> None:
        """Begin with nothing done; without `on_progress` nothing is passed on."""
        self._on_progress = on_progress
        self._now = Progress("cache", epochs)
        self._last = -MIN_INTERVAL_S

    def begin(self, phase: Phase, epoch: int, steps: int, best: float | None) -> None:
        """Begin a phase of an epoch."""
        self._now = replace(self._now, phase=phase, epoch=epoch, best=best, step=0, steps=steps)
        self._pass_on(always=True)

    def show(self, step: int, steps: int, *, loss: float | None = None, images_per_s: float | None = None) -> None:
        """Show that `step` of `steps` are done; what is not given stays as it was."""
        self._now = replace(
            self._now,
            step=step,
            steps=steps,
            loss=self._now.loss if loss is None else loss,
            images_per_s=self._now.images_per_s if images_per_s is None else images_per_s,
        )
        self._pass_on(always=step >= steps)

    def _pass_on(self, *, always: bool) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        if always or now - self._last >= MIN_INTERVAL_S:
            self._last = now
            self._on_progress(self._now)
