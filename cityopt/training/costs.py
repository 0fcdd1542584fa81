"""What a training costs, as `measurement.py` measures it. Importable without torch: forecasts are made of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingCosts:
    """The costs of a training of `epochs` epochs. Memory is the GPU's where there is one, else the process's."""

    epochs: int
    steps: int
    """Optimiser steps of an epoch."""
    step_s: float
    images: int
    """Validated images of an epoch."""
    image_s: float
    begin_s: float
    """From the data to the first step."""
    save_s: float
    """A checkpoint, after each epoch."""
    end_s: float
    """After the last epoch: the kept checkpoint, and what its model sees."""
    cold_s: float
    """More in a worker's first training: kernels are compiled and chosen, libraries loaded."""
    memory_gib: float
    checkpoint_gib: float
    batch_size: int
    pixels: int
    """Of one image."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch, as `system/epoch_s` has them: without its checkpoint."""
        return self.steps * self.step_s + self.images * self.image_s

    def sum_epochs(self, epochs: float) -> float:
        """Return the seconds of a training that ends after so many epochs, in a warm worker."""
        return self.begin_s + epochs * (self.epoch_s + self.save_s) + self.end_s
