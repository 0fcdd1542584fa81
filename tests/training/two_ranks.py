"""What a rank of `test_distributed.py` does: `python two_ranks.py FOLDER RANK BACKEND`, twice at once.

FOLDER holds `<name>.json`, the configs of trainings; `<name>/` becomes the run of each, `<name>-<rank>.pt` what a rank
found.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from cityopt.config import RunConfig
from cityopt.errors import TrainingError
from cityopt.models.build import build_model
from cityopt.tracking.run_folder import RunFolder
from cityopt.training import loop
from cityopt.training.batch_norm import CommonBatchNorm2d, synchronise_norms
from cityopt.training.distributed import JointModel, Ranks
from cityopt.training.run import run_training

SIZE = (64, 128)


def train(folder: Path, name: str, *, stop_after: int = 99) -> dict[str, Any]:
    config = RunConfig.model_validate_json((folder / f"{name}.json").read_text())
    heard: list[int] = []

    def answer(epoch: int, _: dict[str, float]) -> Any:
        heard.append(epoch)
        return "stop" if epoch >= stop_after else "continue"

    try:
        result = run_training(config, RunFolder(folder / name), answer)
    except TrainingError as error:
        return {"reason": error.reason, "message": str(error), "heard": heard}
    return {"heard": heard, "epochs": result.epochs, "metrics": result.metrics, "checkpoint": str(result.checkpoint)}


def ruin_images_of_one_rank(folder: Path, rank: int) -> dict[str, Any]:
    original = loop.move_batch

    def move(batch: Any, device: Any) -> Any:
        images, targets = original(batch, device)
        return [image + float("nan") if rank == 1 else image for image in images], targets

    loop.move_batch = move
    try:
        return train(folder, "nan")
    finally:
        loop.move_batch = original


def compare_gradients(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Rank 1 sees no instance. Returns the largest difference to the mean of what both find alone."""
    config = RunConfig.model_validate_json((folder / "mask.json").read_text())
    torch.manual_seed(5)
    model = build_model(config.model)
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(ranks.rank))
    target = {
        "boxes_xyxy": torch.tensor([[10.0, 10, 50, 50]])[: 1 - ranks.rank],
        "classes": torch.tensor([3])[: 1 - ranks.rank],
        "instance_map": torch.zeros(SIZE, dtype=torch.int32),
    }
    if ranks.leads:
        target["instance_map"][10:50, 10:50] = 1

    def find_gradients(loss: Callable[..., dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(7 + ranks.rank)
        torch.stack(list(loss([image], [target]).values())).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = find_gradients(model.loss)
    joint = find_gradients(JointModel(model, ranks).loss)
    wanted = [ranks.average(gradient) for gradient in alone]
    differences = [float((a - b).abs().max()) for a, b in zip(joint, wanted, strict=True)]
    trained = sum(p.requires_grad for p in model.parameters())
    return {"difference": max(differences), "gradients": len(joint), "trained": trained}


def compare_norms(ranks: Ranks) -> dict[str, float]:
    """Give each rank half of a batch; return the largest differences to torch's batch norm of all of it."""
    generator = torch.Generator().manual_seed(3)
    images, upstream = (torch.randn(4, 3, 5, 7, generator=generator) * 2 + 1 for _ in range(2))
    whole, network = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    synchronise_norms(network)
    (common,) = network
    assert isinstance(common, CommonBatchNorm2d)
    half = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    everything, own = images.clone().requires_grad_(), images[half].clone().requires_grad_()
    wanted, got = whole(everything), common(own)
    wanted.backward(upstream)
    got.backward(upstream[half])
    pairs = {
        "output": (got, wanted[half]),
        "input gradient": (own.grad, everything.grad[half]),
        "weight gradient": (ranks.average(common.weight.grad) * 2, whole.weight.grad),
        "bias gradient": (ranks.average(common.bias.grad) * 2, whole.bias.grad),
        "mean": (common.running_mean, whole.running_mean),
        "variance": (common.running_var, whole.running_var),
    }
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def main(folder: Path, rank: int, backend: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    if "cuda" in backend:
        torch.save({name: train(folder, name) for name in ("group", "batch", "mask")}, folder / f"found-{rank}.pt")
        return
    found = {
        "dealt": list(ranks.spread(lambda number: (number * number, rank), [1, 2, 3])),
        "shared": ranks.share(rank),
        "norm": compare_norms(ranks),
        "gradients": compare_gradients(folder, ranks),
        "group": train(folder, "group"),
        "batch": train(folder, "batch"),
        "mask": train(folder, "mask"),
        "accumulated": train(folder, "accumulated"),
        "begun_alone": train(folder, "begun_alone"),
        "begun_by_two": train(folder, "begun_by_two", stop_after=1),
        "nan": ruin_images_of_one_rank(folder, rank),
    }
    torch.save(found, folder / f"found-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
