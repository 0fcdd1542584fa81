import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cityopt.errors import StoreError
from cityopt.evaluation.protocols import PROTOCOLS, USUAL, open_judges
from cityopt.labels import CATEGORIES, EVALUATED_LABELS
from cityopt.report.evaluation_table import print_evaluation
from cityopt.training.evaluation import Evaluation


def make(names=USUAL, **changes) -> Evaluation:
    """Every metric has a value of its own, but those of trains."""
    found = Evaluation(
        "models:/cityopt-[b]@champion",
        Path("/data/[i]"),
        "val",
        500,
        500,
        ((1024, 2048),),
        (512, 1024),
        names,
        {},
        None,
    )
    found = replace(found, **changes)
    every = [name for judge in open_judges(names, found.task) for name in judge.summarize()]
    values = {f"{found.prefix}/{name}": (number + 1) / 1000 for number, name in enumerate(every)}
    return replace(found, metrics={name: math.nan if name.endswith("train") else v for name, v in values.items()})


def show(found: Evaluation, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(console, found)
    return console.file.getvalue()


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_table_shows_each_protocol_by_class_under_its_name():
    found = make()
    text, metrics = show(found), found.metrics
    assert "models:/cityopt-[b]@champion" in text and "/data/[i]" in text
    assert "val, all 500 images" in text and "1024 x 2048" in text and "512 x 1024" in text and "official" not in text
    table = {row[0]: row[1:] for row in rows(text)}
    names = ["cityscapes/ap", "cityscapes/ap50", "coco/segm/ap", "coco/segm/ap50", "coco/bbox/ap"]
    car = [metrics[f"val/{name}/class/car"] for name in names]
    car += [metrics[f"val/semantic_things/{name}/class/car"] for name in ("iou", "iiou")]
    assert table["car"] == [f"{value:.4f}" for value in car]
    assert table["mean"][:5] == [f"{metrics[f'val/{name}']:.4f}" for name in names]
    assert table["train"] == ["–"] * 7
    assert table["boxes"] == [
        f"{metrics[f'val/coco/bbox/{name}']:.4f}"
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    ]
    shares = [metrics[f"val/semantic_things/{name}_weighted"] for name in ("precision", "recall", "f1")]
    assert table["by pixels"] == [*(f"{value:.4f}" for value in shares), ""]
    accuracy = metrics["val/semantic_things/accuracy"]
    assert table["all pixels, other classes as one"][-1] == f"{accuracy:.4f}"
    assert max(map(len, text.splitlines())) <= 100


def test_semantic_model_is_shown_by_its_nineteen_classes_and_seven_categories():
    found = make(("semantic",), task="semantic")
    text, metrics = show(found, width=80), found.metrics
    assert "Cityscapes" in text and "COCO" not in text and "other classes" not in text and "…" not in text
    by_class, by_category = rows(text.partition("by category")[0]), rows(text.partition("by category")[2])
    table = {row[0]: row[1:] for row in by_class}
    assert [row[0] for row in by_class][:20] == ["mean", *(label.name for label in EVALUATED_LABELS)]
    assert table["road"] == [f"{metrics['val/semantic/iou/class/road']:.4f}", ""]
    assert table["car"] == [f"{metrics[f'val/semantic/{name}/class/car']:.4f}" for name in ("iou", "iiou")]
    assert table["all pixels"][-1] == f"{metrics['val/semantic/accuracy']:.4f}"
    assert [row[0] for row in by_category] == ["mean", *CATEGORIES[1:]]
    categories = {row[0]: row[1:] for row in by_category}
    names = ("category_iou", "category_iiou")
    assert categories["mean"] == [f"{metrics[f'val/semantic/{name}']:.4f}" for name in names]
    assert categories["human"] == [f"{metrics[f'val/semantic/{name}/category/human']:.4f}" for name in names]
    assert categories["sky"] == [f"{metrics['val/semantic/category_iou/category/sky']:.4f}", ""]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_table_keeps_to_the_protocols_that_were_asked_for(name):
    text = show(make((name,)))
    shown = ("AP50" in text and "Cityscapes" in text, "COCO" in text, "painted pixels" in text, "boundary" in text)
    assert shown == tuple(name == protocol for protocol in PROTOCOLS)


def test_part_of_a_split_never_looks_like_the_whole():
    text = show(make(num_images=20))
    assert "the first 20 of 500 images of val" in text and "no official numbers" in text
    titles = [line for line in text.splitlines() if line.startswith(("by class", "COCO,", "painted pixels"))]
    assert len(titles) == 3 and all("first 20 images of val" in title for title in titles)


def test_export_without_scores_says_where_it_is():
    text = show(make((), split="test", export=Path("/tmp/[x]/out")))
    assert "exported to /tmp/[x]/out" in text and "│" not in text


def test_export_that_could_not_be_ended_is_not_announced():
    found = replace(make(("coco",)), export=Path("/out"), problem=StoreError("the disk is full"))
    assert "COCO" in show(found) and "exported" not in show(found)
