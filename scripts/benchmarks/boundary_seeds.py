"""Does PointRend draw better boundaries than Mask R-CNN at the same budget? Both, over seeds, on synthetic scenes.

    uv run python scripts/benchmarks/boundary_seeds.py --seeds 3 --epochs 12 --store DIR

Networks, images, anchors and settings are the demo's; the mask head alone differs. A seed decides the starting values,
the order of the images and the holdout, and is the same for both. Scores are those of val at the scenes' full size,
twice what the networks see; boundary AP at both published ratios, because a network this small and this briefly trained
hardly meets Cityscapes' one (3 px here). A second call with the same store goes on where the first one was stopped.
Not one of `scripts/bench`'s measurements: it takes an hour where they take minutes.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from cityopt.config import StudyConfig
from cityopt.data.cityscapes import index_split
from cityopt.data.roots import cache_folder, make_scenes
from cityopt.evaluation.boundary import CITYSCAPES_RATIO, COCO_RATIO, BoundaryEvaluator
from cityopt.evaluation.cityscapes_ap import CityscapesEvaluator
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.evaluation.full_resolution import judge_frames
from cityopt.search.observer import Observer
from cityopt.search.status import read_status
from cityopt.search.sweep import run_sweep
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import load_model

SWEEP = Path(__file__).parents[2] / "sweeps" / "demo.yaml"
FAMILIES = ("mask_rcnn", "point_rend")
METRICS = (
    f"boundary AP at {CITYSCAPES_RATIO}",
    f"boundary AP at {COCO_RATIO}",
    "COCO mask AP",
    "Cityscapes AP",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate every family with every seed, then print means, deviations and differences."""
    options = parse_arguments(arguments)
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for seed in range(options.seeds):
        for family in FAMILIES:
            scores[family, seed] = train_and_score(build_study(family, seed, options), options.store)
            shown = ", ".join(f"{name} {scores[family, seed][name]:.4f}" for name in METRICS)
            print(f"{family}, seed {seed}: {shown}", flush=True)
    for line in sum_up(scores, options.seeds):
        print(line)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare the boundaries of PointRend and Mask R-CNN over seeds.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=260, help="synthetic scenes in all splits together")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a training; scores depend on them")
    parser.add_argument("--store", type=Path, required=True)
    return parser.parse_args(arguments)


def build_study(family: str, seed: int, options: argparse.Namespace) -> StudyConfig:
    """Return the demo with one trial, its baseline, of a family."""
    settings = [
        f"model.family={family}",
        "model.coarse_head_channels=128",
        f"training.epochs={options.epochs}",
        f"data.synthetic.num_images={options.images}",
        f"threads={options.threads}",
        "search.trials=1",
        "search.pruner.name=none",
    ]
    name = f"boundary_{family}_{seed}_{options.epochs}_{options.images}"
    return load_study(str(SWEEP), settings=settings, name=name, extra={"seed": seed})


def train_and_score(study: StudyConfig, store: Path) -> dict[str, float]:
    """Return the metrics of the study's one trial on val."""
    summary = run_sweep(study, store=store, data=None, device="auto", observer=Observer())
    best = read_status(summary.store, study.name).best
    if best is None or best.run_id is None:
        raise SystemExit(f"{study.name} has no complete trial")
    model, config = load_model(resolve_checkpoint(summary.store, best.run_id))
    fine, coarse = BoundaryEvaluator(ratio=CITYSCAPES_RATIO), BoundaryEvaluator(ratio=COCO_RATIO)
    coco, cityscapes = CocoEvaluator(), CityscapesEvaluator()
    root = make_scenes(study.data.synthetic, cache_folder(summary.store))
    frames, judges = index_split(root, "val"), (fine, coarse, coco, cityscapes)
    judge_frames(model, frames, judges, size=config.data.size, device=torch.device("cpu"))
    return dict(
        zip(
            METRICS,
            (
                fine.summarize()["boundary/segm/ap"],
                coarse.summarize()["boundary/segm/ap"],
                coco.summarize()["coco/segm/ap"],
                cityscapes.summarize()["cityscapes/ap"],
            ),
            strict=True,
        )
    )


def sum_up(scores: dict[tuple[str, int], dict[str, float]], num_seeds: int) -> list[str]:
    """Return a line per metric and family, and one for the differences seed by seed."""
    lines = []
    for name in METRICS:
        rows = {family: [scores[family, seed][name] for seed in range(num_seeds)] for family in FAMILIES}
        rows["point_rend - mask_rcnn"] = [b - a for a, b in zip(rows["mask_rcnn"], rows["point_rend"], strict=True)]
        for what, values in rows.items():
            deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            lines.append(f"{name}, {what}: {statistics.mean(values):+.4f}{deviation} (n = {len(values)})")
    return lines


if __name__ == "__main__":
    main()
