"""The processes that train one model together, one per device: who they are, and what they tell one another.

torchrun starts them (RANK, WORLD_SIZE, LOCAL_RANK); `run_training` in each of them is one rank. Stands under `run.py`
and `loop.py`, which are the same for one process: `ALONE`.

- Each rank computes the loss of its share of a batch, and gradients are averaged. So N ranks do what N times as much
  `training.accumulation` does on one device: losses that divide by their own counts (sampled regions, pixels with a
  class, classes that a batch shows) divide by those of the share.
- Batch norm that learns takes its statistics from all shares.
- In validation, whole batches go round, and the leader judges what all of them found, in the order of the images: the
  same to the last bit as one process on the same weights.
- What ranks decide together (a loss that is NaN, to stop) they decide from the same numbers, so that none waits for
  another that has left. A rank that fails alone leaves the others waiting: whoever started them has to end them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from cityopt.errors import ConfigError
from cityopt.models.segmentation_model import SegmentationModel, Target
from cityopt.runtime import resolve_device
from cityopt.training.batch_norm import synchronise_norms

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(days=1)
"""How long ranks wait for one another: while one decodes a dataset or the coordinator thinks, nothing is wrong."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that records, reports and judges."""
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all ranks; NaN and infinity of one are everybody's."""
        if self.world == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.world

    def share(self, value: Result) -> Result:
        """Return the leader's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def spread(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Apply a function to all items, dealt out one by one: as `map` on the leader, nothing on the others.

        Every rank must go through it to its end.
        """
        if self.world == 1:
            yield from map(function, items)
            return
        for start in range(0, len(items), self.world):
            own = [function(item) for item in items[start + self.rank : start + self.rank + 1]]
            found: list[list[Result]] | None = [[] for _ in range(self.world)] if self.leads else None
            distributed.gather_object(own, found, dst=0)
            for results in found or ():
                yield from results

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the leader through the block before the others: it decodes and downloads what they find done."""
        if not self.leads:
            self.share(None)
        yield
        if self.leads:
            self.share(None)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.average(torch.zeros(()))


ALONE = Ranks()


class JointModel:
    """A model as its ranks train it together."""

    def __init__(self, model: SegmentationModel, ranks: Ranks = ALONE) -> None:
        """Join the ranks' models: all get the leader's weights, and batch norms that learn become common ones.

        The modules that train are the model's own, so that its state dict stays that of one process.
        """
        self.model, self.ranks = model, ranks
        self._joined: DistributedDataParallel | None = None
        if ranks.world > 1:
            synchronise_norms(model)
            self._joined = DistributedDataParallel(model)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the loss terms of this rank's images; the backward pass averages gradients over the ranks."""
        if self._joined is None:
            return self.model.loss(images, targets)
        losses: dict[str, Tensor] = self._joined(images, targets)
        return losses

    def adding_up(self) -> AbstractContextManager[None]:
        """Return a block whose gradients stay on their rank until a backward pass outside of it."""
        return nullcontext() if self._joined is None else self._joined.no_sync()


@contextmanager
def open_ranks(device: str, devices: int) -> Iterator[Ranks]:
    """Join the processes of a training on so many devices, and leave them when the block has succeeded.

    A group that the process is in already is used and left as it is. Raises ConfigError: this is no process of so many.
    """
    if devices == 1:
        yield ALONE
        return
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world != devices:
        raise ConfigError(
            f"a training on `devices: {devices}` must run in as many processes, but this is one of {world}. "
            f"Start it with torchrun --nproc-per-node {devices}, or use cityopt promote --devices {devices}."
        )
    is_own = not distributed.is_initialized()
    if is_own:
        backend = "cpu:gloo,cuda:nccl" if resolve_device(device).type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    ranks = Ranks(distributed.get_rank(), world)
    yield ranks
    if is_own:
        ranks.meet()
        distributed.destroy_process_group()


def place_rank(text: str, ranks: Ranks) -> torch.device:
    """Return the device of a rank: the GPU of its number, or the CPU as all of them.

    Raises ConfigError: as `resolve_device`, or one GPU is named for several ranks.
    """
    device = resolve_device(text)
    if ranks.world == 1 or device.type == "cpu":
        return device
    if ":" in text:
        raise ConfigError(f"`--device` must be auto, cpu or cuda with {ranks.world} devices, but got {text!r}.")
    device = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', ranks.rank)}")
    torch.cuda.set_device(device)
    return device


def average_each(values: Iterable[Tensor], ranks: Ranks) -> list[float]:
    """Return the means of scalars over all ranks. Waits for the device, once."""
    means: list[float] = ranks.average(torch.stack(list(values))).tolist()
    return means
